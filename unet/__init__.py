"""The Bayesian U-Net and Monte Carlo dropout."""

from unet.mc_dropout import draw_dropout_masks
from unet.unet_model import BayesianUNet, class_logits

__all__ = ["BayesianUNet", "class_logits", "draw_dropout_masks"]

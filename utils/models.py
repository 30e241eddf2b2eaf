"""A trained network, or an ensemble of them, and what is needed to use it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unet import BayesianUNet
from utils.data.mask_classes import MaskClasses
from utils.metrics.risk_control import RiskCurves
from utils.runtime.errors import InputError

DEFAULT_INPUT_SIZE = (128, 128)


@dataclass
class TrainedModel:
    """A network and what is needed to use it.

    Attributes:
        network: the network; in evaluation mode after loading. Threads may share it.
        input_size: width and height of its input.
        mask_values: the value of class 0, 1, ... in masks, as in `utils.data.mask_classes.MaskClasses`.
        epoch: number of epochs trained.
        validation: scores on the validation images, by name; None where there is none.
        settings: how it was trained, by name.
        temperatures: divisors of the logits that calibrate the probabilities, by `Sampler.method`.
        ignore_value: the value in masks of pixels that do not count; None if there is none.
        white: the value of white in 16-bit images; None if it was trained on none.
        risk_curves: the losses of the calibration images, by `Sampler.method`; empty before a calibration.
        members: of an ensemble, whose `network` is that of the first one; empty for a single network.
        compiled: computes `forward`, if the network is compiled, see `utils.inference.compiled`.
    """

    network: BayesianUNet = field(repr=False)
    input_size: tuple[int, int] = DEFAULT_INPUT_SIZE
    mask_values: list[int] = field(default_factory=lambda: [0, 255])
    epoch: int = 0
    validation: dict[str, float | None] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    temperatures: dict[str, float] = field(default_factory=dict)
    ignore_value: int | None = None
    white: float | None = None
    risk_curves: dict[str, RiskCurves] = field(default_factory=dict)
    members: tuple["TrainedModel", ...] = ()
    compiled: Callable[[Tensor, Tensor | None], Tensor] | None = None

    @property
    def networks(self) -> list[BayesianUNet]:
        """The networks of all members; of a model that is not an ensemble the only one."""
        return [member.network for member in self.members] or [self.network]

    @property
    def device(self) -> torch.device:
        """The device of the network's weights."""
        return next(self.network.parameters()).device

    @property
    def n_classes(self) -> int:
        """The number of classes that predictions distinguish; 2 for a one-class (sigmoid) network as well."""
        return len(self.mask_values)

    @property
    def mask_classes(self) -> MaskClasses:
        """What the values of its training masks mean."""
        return MaskClasses(self.mask_values, self.ignore_value)

    @property
    def background(self) -> int | None:
        """The value of class 0 in masks; None if it is the lowest one."""
        known = [value for value in (*self.mask_values, self.ignore_value) if value is not None]
        return self.mask_values[0] if self.mask_values and self.mask_values[0] > min(known) else None

    @property
    def one_class(self) -> bool:
        """Whether the network, or each member, has a single sigmoid output."""
        return self.network.n_classes == 1

    def forward(self, inputs: Tensor, masks: Tensor | None = None) -> Tensor:
        """The network's output, (N, C, h, w), of (N, 3, h, w) inputs; with the dropout masks (N, D), if given."""
        return (self.compiled or self.network)(inputs, masks)

    def fingerprint(self) -> str:
        """A digest of the weights."""
        digest = hashlib.blake2b(digest_size=12)
        for network in self.networks:
            for name, value in network.state_dict().items():
                digest.update(name.encode())
                digest.update(value.cpu().contiguous().numpy())
        return digest.hexdigest()


def combine_models(models: Mapping[str, TrainedModel]) -> TrainedModel:
    """The deep ensemble of several models (Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017).

    Args:
        models: by the names of their files, for messages; of an ensemble among them all members are taken.

    Returns:
        An ensemble without temperatures and risk curves, which are not those of its members; a single model as it is.

    Raises:
        InputError: they differ in their classes, mask values or input size, or in what they record of ignored pixels
            and of white, or a network is in two of them.
        ValueError: there is none.
    """
    if not models:
        raise ValueError("an ensemble has at least one member")
    first = next(iter(models.values()))
    if len(models) == 1:
        return first
    common: dict[str, tuple[str, Any]] = {}
    names: dict[str, str] = {}  # by the fingerprints of the networks
    for name, model in models.items():
        for what, value in _interface(model).items():
            other, expected = common.setdefault(what, (name, value))
            if value != expected:
                raise InputError(
                    f"{other} and {name} cannot be members of one ensemble: their {what} differ, {expected} and {value}"
                )
        for member in model.members or (model,):
            if (other := names.setdefault(member.fingerprint(), name)) != name:
                raise InputError(f"{other} and {name} have the same network: the members of an ensemble are different")
    return TrainedModel(
        first.network,
        first.input_size,
        first.mask_values,
        ignore_value=common.get("ignored mask values", (None, None))[1],
        white=common.get("values of white", (None, None))[1],
        members=tuple(member for one in models.values() for member in one.members or (one,)),
    )


def _interface(model: TrainedModel) -> dict[str, Any]:
    """What the members of an ensemble agree in, by its display name; what a model does not record is left out."""
    width, height = model.input_size
    known = {"classes": model.network.n_classes, "mask values": model.mask_values, "input sizes": f"{width}x{height}"}
    known |= {"ignored mask values": model.ignore_value, "values of white": model.white}
    return {what: value for what, value in known.items() if value is not None}

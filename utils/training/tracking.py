"""Weights & Biases: online with a login, offline without; its failures never stop training."""

import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from utils import IGNORED_CLASS

logger = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")


def has_login() -> bool:
    """Whether wandb would find an API key: in the environment, or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def panel_name(name: str) -> str:
    """A column of metrics.csv as a name that wandb groups into panels: val_dice becomes val/dice."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest}" if group in ("train", "val") else name


def _examples(images: Sequence[np.ndarray], masks: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> list:
    """wandb images with ground truth and prediction as overlays."""
    import wandb

    examples = []
    for image, mask, prediction in zip(images, masks, predicted, strict=True):
        overlays = {"ground_truth": mask, "prediction": prediction}
        layers = {name: {"mask_data": classes, "class_labels": _labels(classes)} for name, classes in overlays.items()}
        examples.append(wandb.Image(image, masks=layers))
    return examples


def _labels(classes: np.ndarray) -> dict[int, str]:
    names = {0: "background", IGNORED_CLASS: "ignored"}
    return {int(k): names.get(int(k), f"class {k}") for k in np.unique(classes)}


class WandbRun:
    """A run of Weights & Biases. Every failure becomes a warning, and training continues without it.

    Args:
        mode: "online", "offline" or "disabled"; None for the environment variable WANDB_MODE or, without it, online
            with a login and offline without.
        config: settings of the training run.
        folder: the run's files are written to its sub-folder `wandb`.
    """

    def __init__(self, mode: str | None, config: Mapping[str, Any], folder: Path) -> None:
        self.run, self.log_examples = None, True
        self.mode = mode or os.environ.get("WANDB_MODE") or ("online" if has_login() else "offline")
        if self.mode == "disabled":
            return
        # wandb fails in many ways, and no training should depend on it: hence every Exception, here and below.
        try:
            import wandb

            folder.mkdir(parents=True, exist_ok=True)
            self.run = wandb.init(
                project="bayesian-unet",
                config=dict(config),
                dir=str(folder),
                mode=self.mode,
                settings=wandb.Settings(silent=True, console="off", init_timeout=60),
            )
            self.run.define_metric("epoch")
            self.run.define_metric("*", step_metric="epoch")
            self.run.define_metric(panel_name("val_dice"), step_metric="epoch", summary="max")
        except Exception as error:
            self._disable(error)
            return
        if self.mode == "offline":
            folder = self._run_folder()
            logger.info("wandb logs offline to %s; to upload the run: wandb login, then wandb sync %s", folder, folder)
        else:
            logger.info("wandb: %s", self.run.url)

    def log(
        self,
        row: Mapping[str, float | None],
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        predicted: Sequence[np.ndarray],
    ) -> None:
        """Log an epoch's numbers and example images.

        Args:
            row: numbers by name; None is left out.
            images: (h, w, 3) uint8.
            masks, predicted: (h, w) uint8 classes, ground truth and prediction of each image.
        """
        if self.run is None:
            return
        content = {panel_name(name): value for name, value in row.items() if value is not None}
        try:
            if self.log_examples:
                content[panel_name("val_examples")] = _examples(images, masks, predicted)
        except Exception as error:  # older versions of wandb do not support the newest Pillow
            self.log_examples = False
            logger.warning("wandb cannot log the example predictions (%s): continuing without them", error)
        try:
            self.run.log(content)
        except Exception as error:
            self._disable(error)

    def finish(self) -> None:
        """End the run."""
        if self.run is None:
            return
        try:
            self.run.finish()
        except Exception as error:
            self._disable(error)

    def _run_folder(self) -> Path:
        return Path(self.run.dir).parent  # .../offline-run-DATE-ID/files

    def _disable(self, error: Exception) -> None:
        logger.warning("wandb failed (%s: %s): continuing without it", type(error).__name__, error)
        self.run = None

"""Weights & Biases, for those who want it: online with a login, offline without, never in the way."""

import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

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


def panel(name: str) -> str:
    """The name of a column of metrics.csv as wandb groups its panels: val_dice becomes val/dice."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest}" if group in ("train", "val") else name


def _examples(images: Sequence[np.ndarray], masks: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> list:
    """Images of wandb's with the true and the predicted classes over them."""
    import wandb

    examples = []
    for image, truth, guess in zip(images, masks, predicted, strict=True):
        overlays = {"truth": truth, "prediction": guess}
        layers = {name: {"mask_data": mask, "class_labels": _labels(mask)} for name, mask in overlays.items()}
        examples.append(wandb.Image(image, masks=layers))
    return examples


def _labels(classes: np.ndarray) -> dict[int, str]:
    return {int(k): f"class {k}" if k else "background" for k in np.unique(classes)}


class WandbRun:
    """A run of Weights & Biases. Whatever goes wrong in it becomes a warning, and the training goes on without.

    Args:
        mode: "online", "offline", "disabled", or None for WANDB_MODE, or else online with a login and offline
            without.
        config: the settings of the training.
        folder: where the run's files go, in a sub-folder `wandb`.
    """

    def __init__(self, mode: str | None, config: Mapping[str, Any], folder: Path) -> None:
        self.run, self.pictures = None, True
        self.mode = mode or os.environ.get("WANDB_MODE") or ("online" if has_login() else "offline")
        if self.mode == "disabled":
            return
        # Nobody's training should depend on wandb, and it fails in many ways: hence every Exception, here and below.
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
            self.run.define_metric(panel("val_dice"), step_metric="epoch", summary="max")
        except Exception as error:
            self._give_up(error)
            return
        if self.mode == "offline":
            folder = self._run_folder()
            logger.info("wandb runs offline in %s; to send it: wandb login, then wandb sync %s", folder, folder)
        else:
            logger.info("wandb: %s", self.run.url)

    def log(
        self, row: Mapping[str, float], images: Sequence[np.ndarray], masks: Sequence[np.ndarray], predicted: np.ndarray
    ) -> None:
        """Log an epoch's numbers and example images.

        Args:
            row: numbers by name.
            images: (h, w, 3) uint8.
            masks, predicted: (h, w) uint8 classes, the truth and the prediction of each image.
        """
        if self.run is None:
            return
        content = {panel(name): value for name, value in row.items()}
        try:
            if self.pictures:
                content[panel("val_examples")] = _examples(images, masks, predicted)
        except Exception as error:  # an older wandb does not get on with the newest Pillow
            self.pictures = False
            logger.warning("wandb cannot take the example predictions (%s): going on without them", error)
        try:
            self.run.log(content)
        except Exception as error:
            self._give_up(error)

    def finish(self) -> None:
        """End the run."""
        if self.run is None:
            return
        try:
            self.run.finish()
        except Exception as error:
            self._give_up(error)

    def _run_folder(self) -> Path:
        return Path(self.run.dir).parent  # .../offline-run-DATE-ID/files

    def _give_up(self, error: Exception) -> None:
        logger.warning("wandb does not work here (%s: %s): going on without it", type(error).__name__, error)
        self.run = None

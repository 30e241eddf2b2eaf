"""Weights & Biases: online with a login and a network, else offline; its failures never stop training."""

import logging
import netrc
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np

from utils import IGNORED_CLASS
from utils.runtime.atomic_files import write_file
from utils.runtime.errors import first_line

logger = logging.getLogger(__name__)

# Images, (h, w, 3) uint8, and ground truth and prediction of each, (h, w) uint8 classes.
Examples = tuple[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[np.ndarray]]

DEFAULT_SERVER = "https://api.wandb.ai"
MODES = ("online", "offline", "disabled")


def has_login() -> bool:
    """Whether wandb would find an API key: in the environment, or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER).hostname
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]  # the latter on Windows
    file = next((path for path in map(os.path.expanduser, files) if os.path.exists(path)), None)
    try:
        return file is not None and netrc.netrc(file).authenticators(host or "") is not None
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


def is_reachable(timeout: float = 5.0) -> bool:
    """Whether the server of wandb answers, through the proxy of the environment if there is one."""
    address = os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER
    try:
        with urlopen(address, timeout=timeout):
            return True
    except HTTPError:  # an answer, too
        return True
    except (OSError, HTTPException, ValueError):
        return False


class WandbRun:
    """A run of Weights & Biases. Every failure becomes a warning, and training continues without it.

    The variables WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_RUN_ID, WANDB_DIR and so on mean what they mean to
    wandb.

    Args:
        mode: "online", "offline" or "disabled"; None for the environment variable WANDB_MODE or, without it, online
            with a login and offline without. Online is offline if the server cannot be reached.
        config: settings of the training run.
        folder: the run's files are written to its sub-folder `wandb`.
        resumed: continue the run that was last tracked from this folder, for an epoch or up to a stop.
        patience: seconds that the end of the run may take.
    """

    def __init__(
        self, mode: str | None, config: Mapping[str, Any], folder: Path, resumed: bool = False, patience: float = 60
    ) -> None:
        self.run, self.log_examples, self.patience = None, True, patience
        self._id_file = folder / "wandb" / "run-id"
        self.mode = mode or os.environ.get("WANDB_MODE") or ("online" if has_login() else "offline")
        if self.mode == "disabled":
            return
        if self.mode == "online" and not is_reachable():
            logger.warning("The server of wandb cannot be reached: logging offline")
            self.mode = "offline"
        # wandb fails in many ways, and no training should depend on it: hence every Exception, here and below.
        try:
            config = {name: value for name, value in config.items() if name != "trained_names"}  # of maybe thousands
            self.run = self._init(config, folder, resumed)
            self.run.define_metric("epoch")
            self.run.define_metric("*", step_metric="epoch")
            self.run.define_metric(panel_name("val_dice"), step_metric="epoch", summary="max")
        except Exception as error:
            self._disable(error)
            return
        if self.mode == "offline":
            run_folder = self._run_folder()
            words = "wandb logs offline to %s; to upload the run: wandb login, then wandb sync %s"
            logger.info(words, run_folder, run_folder)
        else:
            logger.info("wandb: %s", self.run.url)

    def _init(self, config: dict[str, Any], folder: Path, resumed: bool) -> Any:
        """Start the run, or continue that whose ID is in the folder; offline if that fails online."""
        import wandb

        options: dict[str, Any] = {"config": config}
        if not os.environ.get("WANDB_PROJECT"):
            options["project"] = "bayesian-unet"
        if not os.environ.get("WANDB_DIR"):
            folder.mkdir(parents=True, exist_ok=True)
            options["dir"] = str(folder)
        if not os.environ.get("WANDB_RUN_ID") and resumed and self._id_file.exists():
            options |= {"id": self._id_file.read_text().strip(), "resume": "allow"}
        settings = wandb.Settings(silent=True, console="off", init_timeout=60)
        try:
            run = wandb.init(mode=self.mode, settings=settings, **options)
        except Exception as error:
            if self.mode != "online":
                raise
            logger.warning("wandb cannot log online (%s): logging offline", first_line(error))
            self.mode = "offline"
            run = wandb.init(mode=self.mode, settings=settings, **options)
        return run

    def _record(self) -> None:
        """Record the run's ID, now that the checkpoints in the folder are those of this run."""
        write_file(self._id_file, f"{self.run.id}\n".encode())

    def log(self, row: Mapping[str, float | None], examples: Callable[[], Examples]) -> None:
        """Log an epoch's numbers and example predictions.

        Args:
            row: numbers by name; None is left out.
            examples: predicts them; is called only if they are logged.
        """
        if self.run is None:
            return
        content = {panel_name(name): value for name, value in row.items() if value is not None}
        try:
            if self.log_examples:
                content[panel_name("val_examples")] = _examples(*examples())
        except Exception as error:  # older versions of wandb do not support the newest Pillow
            self.log_examples = False
            logger.warning("wandb cannot log the example predictions (%s): continuing without them", first_line(error))
        try:
            self.run.log(content)
            self._record()
        except Exception as error:
            self._disable(error)

    def finish(self) -> None:
        """End the run; what has not been uploaded in time stays on the disk."""
        if self.run is None:
            return
        failures: list[Exception] = []

        def end() -> None:
            try:
                self._record()
                self.run.finish()
            except Exception as error:
                failures.append(error)

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        ending.join(self.patience)
        if failures:
            self._disable(failures[0])
        elif ending.is_alive():
            folder = self._run_folder()
            logger.warning("wandb is still uploading: not waiting any longer; wandb sync %s uploads the rest", folder)

    def _run_folder(self) -> Path:
        return Path(self.run.dir).parent  # .../offline-run-DATE-ID/files

    def _disable(self, error: Exception) -> None:
        logger.warning("wandb failed (%s: %s): continuing without it", type(error).__name__, error)
        self.run = None

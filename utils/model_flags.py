"""From the flags to what they name of device and model: the part of `utils.cli` that knows networks."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unet import BayesianUNet
from utils.arguments import DEFAULT_MODEL, DEFAULT_THRESHOLD
from utils.checkpoint import load_model
from utils.data.images import find_white
from utils.inference.samplers import MCDropout
from utils.models import DEFAULT_INPUT_SIZE, TrainedModel, combine_models
from utils.runtime.device import amp_dtype, choose_device, device_name, precision_name
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)


def device_from_args(args: argparse.Namespace) -> tuple[torch.device, torch.dtype | None]:
    """The device that the flags of `arguments.compute_parent` name, and the dtype of mixed precision."""
    device = choose_device(args.device)
    return device, amp_dtype(device, args.amp)


def log_device(device: torch.device, dtype: torch.dtype | None) -> None:
    """Log what is computed on, and in which precision."""
    logger.info("Computing on %s in %s", device_name(device), precision_name(dtype, device))


def model_from_args(
    args: argparse.Namespace, image_paths: Sequence[Path] = ()
) -> tuple[TrainedModel, torch.dtype | None]:
    """The model that the flags of `arguments.model_parent` name, on its device, and the dtype of mixed precision.

    Several model files are an ensemble.

    Args:
        args: the flags.
        image_paths: the images to predict, which show the bit depth if neither a flag nor the model says it.

    Raises:
        InputError: there is no such model or device, a flag contradicts a model, or the models are no ensemble.
    """
    if args.model == [DEFAULT_MODEL] and not DEFAULT_MODEL.exists():  # called from another folder
        args.model = [Path(__file__).resolve().parent.parent / DEFAULT_MODEL]
    if len({path.resolve() for path in args.model}) < len(args.model):
        raise InputError("a model was given twice; the members of an ensemble are different ones", "model")
    default_size = (args.newW or DEFAULT_INPUT_SIZE[0], args.newH or DEFAULT_INPUT_SIZE[1])
    device, dtype = device_from_args(args)
    models = {str(path): load_model(path, device, default_size) for path in args.model}
    for path, model in models.items():
        check_model_flags(args, path, model)
    model = combine_models(models)
    if getattr(args, "guarantee", None) and args.white and model.white not in (None, args.white):
        text = f"--guarantee holds where white is {model.white:g}, as in the calibration: omit --white {args.white:g}"
        raise InputError(text)
    model.white = args.white or model.white or find_white(image_paths)
    logger.info("%s, input size %dx%d", describe_models(args.model, model), *model.input_size)
    log_device(device, dtype)
    return model, dtype


def describe_models(paths: Sequence[Path], model: TrainedModel) -> str:
    """The files of a model, for a log line."""
    number = f", an ensemble of {len(model.members)}" if model.members else ""
    return f"Model{'s' * (len(paths) > 1)} {join_names(paths)}{number}"


def join_names(paths: Sequence[Path]) -> str:
    """The files of a model as they are recorded."""
    return ", ".join(map(str, paths))


def check_model_flags(args: argparse.Namespace, path: Path | str, model: TrainedModel) -> None:
    """Check that no flag contradicts a model.

    Raises:
        InputError: a flag does.
    """
    width, height = model.input_size
    for network in model.networks:
        architecture = network.architecture
        actual = {"classes": architecture["n_classes"], "bilinear": architecture["bilinear"]}
        _check_values(args, path, actual | {"newW": width, "newH": height})
    threshold = getattr(args, "mask_threshold", DEFAULT_THRESHOLD)
    if model.n_classes > 2 and threshold != DEFAULT_THRESHOLD:
        words = f"which is for two classes: the model has {model.n_classes}. Omit the flag"
        raise InputError(f"{path} contradicts --mask-threshold {threshold:g}, {words}")


def _check_values(args: argparse.Namespace, path: Path | str, actual: Mapping[str, Any]) -> None:
    for name, value in actual.items():
        given = getattr(args, name, None)
        if given is not None and given != value:
            flag = f"--{name}" if given is True else f"--{name} {given}"
            actual_value = "transposed convolutions" if given is True else value
            raise InputError(f"{path} contradicts {flag}: the model has {actual_value}. Omit the flag")


def passes_from_args(args: argparse.Namespace, model: TrainedModel) -> int:
    """The number of MC dropout passes: --mc, or with --guarantee that of the model's calibration, or the default."""
    if args.mc is not None:
        return args.mc
    curves = model.risk_curves.get(MCDropout.method) if args.guarantee else None
    return curves.settings.get("num_samples", args.default_passes) if curves else args.default_passes


def initial_model_from_args(args: argparse.Namespace, resumed: Path | None = None) -> TrainedModel:
    """The model to train: a new one, or that of the checkpoint that --load names, at the input size of this run.

    Args:
        args: the flags of `arguments.training_parent`.
        resumed: the checkpoint of an interrupted run, whose network is continued.

    Returns:
        The model as it was recorded; a new one has no mask values.

    Raises:
        InputError: there is no such checkpoint, or a flag contradicts it.
    """
    if args.load and resumed:
        raise InputError("--load starts a new run, --resume continues one: give only one of them")
    path = resumed or args.load
    if path is None:
        network = BayesianUNet(n_classes=args.classes or 2, bilinear=bool(args.bilinear))
        width, height = DEFAULT_INPUT_SIZE
        return TrainedModel(network, (args.newW or width, args.newH or height), mask_values=[])
    model = load_model(path)
    if model.members:
        raise InputError(f"{path} is an ensemble of {len(model.members)}: training starts from a single network")
    if resumed is None:  # a new run: its weights fit every input size
        width, height = model.input_size
        model.input_size = (args.newW or width, args.newH or height)
    check_model_flags(args, path, model)
    if not model.network.dropout_channels:
        logger.warning("%s has no dropout layers: what is trained from it cannot be used with MC dropout", path)
    epochs = model.settings.get("epochs", args.epochs)
    if resumed is not None and epochs != args.epochs:
        state = f"has finished its {epochs} epoch{'s' * (epochs != 1)}"
        if model.epoch < epochs:
            state = f"is one of {epochs} epochs: complete it with --resume and --epochs {epochs}"
        further = f"to train further, use --load {path} with --epochs N, in place of --resume"
        raise InputError(f"the run of {path} {state}; {further}")
    return model

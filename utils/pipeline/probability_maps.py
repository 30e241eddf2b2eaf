"""Write a probability map for each image of a folder, by any method: what the predict_prob scripts do."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from utils.checkpoint import TrainedModel
from utils.data.images import save_png
from utils.inference.guarantees import make_guarantee
from utils.inference.maps import STATISTICS, ProbabilityMaps, to_greyscale
from utils.inference.predictor import MapOptions, Prediction
from utils.inference.samplers import Sampler, calibrated
from utils.pipeline.folder_predictor import FolderPredictor
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.image_loop import ImageLoop
from utils.pipeline.items import Item, sibling
from utils.pipeline.journal import Journal
from utils.pipeline.outputs import FLOAT_MAPS, check_room_for_floats, make_greyscale_maps, save_float_maps
from utils.pipeline.report import Report, check_tables, write_tables
from utils.pipeline.run_settings import run_settings
from utils.runtime.errors import InputError

_IN_METRICS = (
    "method",
    "temperature",
    "mask_values",
    "white",
    "ignore_value",
    "guarantee",
    "class_index",
    "save_entropy",
)


@dataclass(frozen=True)
class ProbabilityMapOptions:
    """What is written besides the probability maps, and what they are compared with.

    Attributes:
        class_index: the class whose probability is written.
        save_entropy: also write the other greyscale maps, as `make_greyscale_maps` makes them.
        save_npy: also write the float32 maps, as `save_float_maps` does.
        calibrated: divide the logits by the temperature of the model.
        mask_dir: folder of ground-truth masks with which the probabilities are compared.
        mask_suffix: how the masks are named, see `PairingOptions`.
        ignore_value: the value in masks of pixels that do not count, if not that of the model.
        skip_existing: resume an interrupted run, see `Journal`.
        guarantee: also write the masks with a guarantee of this level, see `Guarantee`.
        compile: compile the network.
        ext: the file extensions of the images, if the user names some: recorded for the review page.
        model_name: name of the model file, recorded in metrics.json.
    """

    class_index: int = 1
    save_entropy: bool = False
    save_npy: bool = False
    calibrated: bool = False
    mask_dir: Path | None = None
    mask_suffix: str | None = None
    ignore_value: int | None = None
    skip_existing: bool = False
    guarantee: float | None = None
    compile: bool = False
    ext: Sequence[str] | None = None
    model_name: str = ""


def predict_probabilities(
    model: TrainedModel, sampler: Sampler, items: Sequence[Item], output_dir: Path, options: ProbabilityMapOptions
) -> Report:
    """Write each image's map of one class's probability, an 8-bit greyscale PNG in which 255 is 1.

    Args:
        model: to predict with.
        sampler: the method.
        items: the images.
        output_dir: where the maps and `summary.csv` are written.
        options: what else is written.

    Returns:
        The outcome, whose tables are written.

    Raises:
        InputError: the model has no such class or no temperature, or cannot give the guarantee, no image has a
            ground-truth mask, or the output folder has other tables.
    """
    check_tables(output_dir)
    sampler = calibrated(sampler, model) if options.calibrated else sampler
    sampler.check(model)
    guarantee = make_guarantee(model, sampler, options.guarantee)
    if (class_index := options.class_index) >= model.n_classes:
        raise InputError(f"class index {class_index}: the model has classes 0 to {model.n_classes - 1}")
    outputs, ground_truth = {item.path: item.output(output_dir) for item in items}, None
    if options.mask_dir:
        classes = model.mask_classes
        ground_truth = GroundTruth(items, options.mask_dir, classes, options.ignore_value, options.mask_suffix)
        ground_truth.check_kept(outputs.values())

    # What is recorded in metrics.json, and what has to be equal for an interrupted run to be resumed.
    settings = run_settings(model, sampler, ground_truth, guarantee)
    settings |= {"class_index": class_index, "save_entropy": options.save_entropy, "ext": options.ext}
    run = {name: settings[name] for name in _IN_METRICS}
    settings |= {"save_npy": options.save_npy, "mask_dir": str(options.mask_dir), "mask_suffix": options.mask_suffix}

    def draw(maps: ProbabilityMaps) -> dict[str, Tensor]:
        if options.save_entropy:
            return make_greyscale_maps(maps, [class_index])
        return {"_prob": to_greyscale(maps.probs[class_index])}

    def save(item: Item, prediction: Prediction) -> list[Path]:
        output, files = item.output(output_dir), []
        for suffix, greyscale_map in prediction.greyscale_maps.items():
            files.append(output if suffix == "_prob" else sibling(output, f"{suffix}.png"))
            save_png(files[-1], greyscale_map)
        if options.save_npy:
            files += save_float_maps(output, prediction.maps, one_class=model.one_class)
        return files

    kept, statistics = (STATISTICS if saved else () for saved in (options.save_npy, options.save_entropy))
    maps = MapOptions(greyscale_maps=draw, statistics=statistics, keep=kept, guarantee=guarantee)
    check_room_for_floats(output_dir, outputs, (2 * model.network.n_classes + 3) * options.save_npy, FLOAT_MAPS)
    journal = Journal(output_dir, settings, items, options.skip_existing, ground_truth)
    loop = ImageLoop(items, ground_truth, journal, partial(write_tables, output_dir))
    report = FolderPredictor(model, sampler, save, maps, compile=options.compile).run(loop)
    report.write(output_dir, ground_truth, run | {"model": options.model_name})
    return report

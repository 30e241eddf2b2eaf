"""Single images with all of their maps: where the files go, how an image is predicted, what is written of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from utils.checkpoint import TrainedModel
from utils.data.images import save_png
from utils.data.masks import mask_to_image
from utils.inference.guarantees import Guarantee
from utils.inference.maps import STATISTICS
from utils.inference.predictor import MapOptions, Prediction, draw_samples, predict_full_size
from utils.inference.samplers import Sampler
from utils.inference.upsampling import LogitSamples
from utils.pipeline.items import Item, check_output_folders, check_replaced, find_images, identity, sibling
from utils.pipeline.outputs import make_greyscale_maps, pass_files, pass_writers, save_float_maps
from utils.pipeline.summary import read_earlier_summary
from utils.runtime import distributed
from utils.runtime.atomic_files import check_replaceable
from utils.runtime.errors import InputError
from utils.runtime.output_folder import check_writable
from utils.runtime.threads import BackgroundWriter, one_torch_thread

MAX_FIGURE_ROWS = 50

# -- where the files go ------------------------------------------------------------------------------------------------


def find_single_images(
    inputs: Sequence[Path],
    outputs: Sequence[Path] | None = None,
    output_dir: Path | None = None,
    figure: Path | None = None,
    saving: bool = True,
    masks: tuple[Path | None, str | None] = (None, None),
) -> list[tuple[Item, Path]]:
    """Pair each image with the file of its mask, beside which its other results are written.

    Args:
        inputs: images, or folders of images.
        outputs: a mask file for each image; None for names derived from the images'.
        output_dir: a folder for the masks, in place of `outputs`.
        figure: the file of a figure of all images.
        saving: whether anything but the figure is written.
        masks: folder and suffix of the ground-truth masks, which are ignored in a folder of images.

    Raises:
        InputError: an image cannot be found, or a result would overwrite another file or be among images or masks.
    """
    paths = [image for path in inputs for image in (find_images(path, masks=masks) if path.is_dir() else [path])]
    if any(path.is_dir() for path in inputs) and not output_dir and saving:
        raise InputError("a folder of images requires an output folder for the results")
    if output_dir:
        outputs = [output_dir / f"{path.stem}.png" for path in paths]
        check_output_folders([output_dir], paths, masks[0])
    elif outputs is None:
        outputs = [sibling(path, "_OUT.png") for path in paths]
        if saving and distributed.is_main():
            for folder in {path.parent for path in outputs}:
                check_writable(folder)
    if len(outputs) != len(paths):
        raise InputError(f"one output file per image was expected, not {len(outputs)} for {len(paths)} images")
    _check_figure(figure, paths, outputs)
    twice = [path for path, count in Counter(map(str, paths)).items() if count > 1]
    if saving and twice:
        raise InputError(f"{twice[0]} was given twice: its results are written once")
    if saving:
        _check_outputs(outputs)
        check_replaced(outputs, [*paths, *([figure] if figure else [])])
    return [(Item(path, PurePath(path.name), str(path)), output) for path, output in zip(paths, outputs, strict=True)]


def _check_figure(figure: Path | None, inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    if figure is None:
        return
    if figure.suffix.lower() != ".png" or figure.is_dir():
        raise InputError(f"figure {figure}: a file name that ends with .png was expected")
    if identity(figure.resolve()) in [identity(path.resolve()) for path in (*inputs, *outputs)]:
        raise InputError(f"the figure {figure} would overwrite an image or its mask: choose another name or folder")
    if len(inputs) > MAX_FIGURE_ROWS:
        raise InputError(
            f"the figure is limited to {MAX_FIGURE_ROWS} images, not {len(inputs)}; each has its own NAME_figure.png"
        )


def _check_outputs(outputs: Sequence[Path]) -> None:
    """Check that each image has a mask file of its own, and that no folder has another summary."""
    for folder in {path.parent for path in outputs}:
        read_earlier_summary(folder / "summary.csv")  # raises if the file is something else
        check_replaceable(folder / "summary.csv")
    known: set[Path] = set()
    for path in outputs:
        if path.suffix.lower() != ".png":
            raise InputError(f"output {path}: the name of a mask must end with .png (or give an output folder)")
        key = identity(path).with_suffix("")
        if key in known:
            raise InputError(f"two images would have the same mask file {path}: rename one of them")
        known.add(key)
        if path.is_dir():
            raise InputError(f"output {path} is a folder: a file was expected")


# -- predict and save --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SingleImageOptions:
    """Which results of an image are written.

    Attributes:
        threshold: with two classes, the probability above which a pixel is class 1.
        save: write any files.
        save_passes: write each pass, as `pass_writers` does.
        save_mean_std: write mean and standard deviation as float32 maps.
        save_npy: write all float32 maps.
        guarantee: whose masks are written and drawn, too.
    """

    threshold: float = 0.5
    save: bool = True
    save_passes: bool = False
    save_mean_std: bool = False
    save_npy: bool = False
    guarantee: Guarantee | None = None

    @property
    def save_float(self) -> bool:
        """Whether any float32 maps are written."""
        return self.save and (self.save_mean_std or self.save_npy)

    def values_per_pixel(self, num_samples: int, n_classes: int) -> int:
        """The number of float32 values that are written of each pixel."""
        if not self.save:
            return 0
        return n_classes * (num_samples * self.save_passes + 2 * self.save_float) + 3 * self.save_npy

    def map_options(self) -> MapOptions:
        """What is computed at full size; the predictive entropy is kept for a figure."""
        keep = {*(STATISTICS if self.save_float else ()), "predictive_entropy"}
        if not self.save:
            return MapOptions(self.threshold, keep=keep, guarantee=self.guarantee)
        return MapOptions(self.threshold, make_greyscale_maps, STATISTICS, keep, self.guarantee)


@dataclass
class SingleImage:
    """An image with its samples and its prediction."""

    image: Image.Image
    samples: list[LogitSamples]
    prediction: Prediction


def predict_single_image(model: TrainedModel, sampler: Sampler, item: Item, options: SingleImageOptions) -> SingleImage:
    """Read and predict an image.

    Raises:
        InputError: the image cannot be read, or the method cannot be used with the model.
    """
    image = item.read(model.white)
    samples = draw_samples(model, image, sampler, item.key)
    return SingleImage(image, samples, predict_full_size(samples, image.size, options.map_options()))


def save_single_image(
    output: Path,
    result: SingleImage,
    model: TrainedModel,
    options: SingleImageOptions,
    save_figure: Callable[[Path], None],
) -> list[Path]:
    """Write the mask of an image to `output`, `DIR/NAME.png`, and everything else beside it, in threads.

    Args:
        output: the file of the mask.
        result: of `predict_single_image`; its float32 maps are dropped once they are written.
        model: with which it was predicted.
        options: what is written.
        save_figure: draws and writes the figure to the given file.

    Returns:
        The files, the mask and the figure first, single passes last.
    """
    prediction, size = result.prediction, result.image.size
    files = [output, sibling(output, "_figure.png")]
    if options.save_float:
        entropies, one_class = options.save_npy, model.one_class
        files += save_float_maps(output, prediction.maps, entropies=entropies, one_class=one_class)
    prediction.maps = None  # as large as a pass
    passes = pass_writers(output, result.samples, size, model.one_class) if options.save_passes else nullcontext(())
    with (
        one_torch_thread(model.device) as threads,
        passes as write_passes,
        BackgroundWriter(max(2, threads)) as writer,
    ):
        writer.submit(save_figure, files[1])
        writer.submit(save_png, output, mask_to_image(prediction.classes, model.mask_values))
        for suffix, greyscale_map in prediction.greyscale_maps.items():
            files.append(sibling(output, f"{suffix}.png"))
            writer.submit(save_png, files[-1], greyscale_map)
        for write_pass in write_passes:
            writer.submit(write_pass)
    return files + (pass_files(output, result.samples, model.one_class) if options.save_passes else [])

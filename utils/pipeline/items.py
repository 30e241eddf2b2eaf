"""The images of an input folder, and where their results go."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from utils.data.images import list_images, read_image
from utils.data.pairing import without_masks
from utils.runtime.errors import InputError
from utils.runtime.output_folder import recorded_files

logger = logging.getLogger(__name__)

_RESULT_OF = re.compile(r"(.+)_OUT(_[a-z0-9_]+)?", re.DOTALL)  # the stem of a result, after that of its image


@dataclass(frozen=True)
class Item:
    """An image to predict.

    Attributes:
        path: path of its file.
        name: path within the input folder.
        title: its name in reports and summaries, if that is not the key.
    """

    path: Path
    name: PurePath
    title: str = ""

    @property
    def reported(self) -> str:
        """The name under which its scores and failures are reported."""
        return self.title or self.key

    @property
    def key(self) -> str:
        """The name from which its random numbers are derived."""
        return self.name.as_posix()

    def read(self, white: float | None = None) -> Image.Image:
        """The image, see `read_image`.

        Raises:
            InputError: the image cannot be read; the message does not repeat the path of its file.
        """
        try:
            return read_image(self.path, white)
        except InputError as error:
            raise InputError(str(error).removeprefix(f"{self.path}").lstrip(": "), *error.options) from error

    def output(self, folder: Path, suffix: str = "_OUT.png") -> Path:
        """The file of its result: its stem with a suffix, in the same sub-folder of `folder`."""
        return folder / self.name.with_name(self.name.stem + suffix)


def sibling(path: Path, suffix: str) -> Path:
    """`DIR/NAME.png` with `suffix` in place of `.png`."""
    return path.with_name(path.stem + suffix)


def find_items(
    input_dir: Path,
    output_dir: Path,
    extensions: Iterable[str],
    recursive: bool = False,
    mask_dir: Path | None = None,
    mask_suffix: str | None = None,
) -> list[Item]:
    """The images of a folder; results, and the masks of `mask_dir`, are ignored.

    Results are the files in the output folder, those that another run has recorded and the pictures of its page, and
    `NAME_OUT.png` and the like beside the image NAME.

    Raises:
        InputError: there are none, the output folder is a file or the input folder itself, or two images would be
            written to the same file.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"the output folder {output_dir} is a file, a folder was expected")
    paths = list_images(input_dir, extensions, recursive)
    source, destination = input_dir.resolve(), output_dir.resolve()
    if destination == source:
        raise InputError(
            f"the output folder is the input folder, {input_dir}: the next run would take the results for images"
        )
    if source in destination.parents:
        paths = [path for path in paths if destination not in path.resolve().parents]
    paths = _without_recorded(paths, input_dir)
    images = without_results(without_masks(paths, input_dir, mask_dir, mask_suffix))
    items = [Item(path, path.relative_to(input_dir)) for path in images]
    if not items:
        raise InputError(f"{input_dir} contains no image but results, such as those in the output folder {output_dir}")
    logger.info("%d image%s in %s", len(items), "s" if len(items) > 1 else "", input_dir)
    outputs: dict[Path, Item] = {}
    for item in items:
        other = outputs.setdefault(item.output(output_dir), item)
        if other is not item:
            raise InputError(
                f"{other.name} and {item.name} would both be written to {item.output(output_dir)}: rename one, or "
                "select one of their file extensions"
            )
    return items


def _without_recorded(paths: Sequence[Path], input_dir: Path) -> list[Path]:
    """Those that are neither results of an earlier run within the input folder nor pictures of its review page."""
    folders = {folder for path in paths for folder in path.parents if input_dir in (folder, *folder.parents)}
    results = {path for folder in folders for path in recorded_files(folder)}
    pages = {folder: folder.with_name(folder.name.removesuffix("_files") + ".html") for folder in folders}
    pictures = {folder for folder, page in pages.items() if folder.name.endswith("_files") and page.exists()}
    kept = [path for path in paths if path not in results and pictures.isdisjoint(path.parents)]
    if len(kept) < len(paths):
        logger.info("Ignoring results of earlier runs in %s: %d", input_dir, len(paths) - len(kept))
    return kept


def without_results(images: Sequence[Path]) -> list[Path]:
    """Images without the results of others among them that were written beside these."""
    stems = {image.with_suffix("") for image in images}
    kept = [
        image
        for image in images
        if not ((match := _RESULT_OF.fullmatch(image.stem)) and image.with_name(match[1]) in stems)
    ]
    if len(kept) < len(images):
        logger.info("Ignoring results beside their images, NAME_OUT...: %d", len(images) - len(kept))
    return kept

"""The images of an input folder, and where their results go."""

import logging
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from utils.data.images import IMAGE_EXTENSIONS, list_images, read_image
from utils.data.pairing import without_masks
from utils.runtime.errors import InputError
from utils.runtime.output_folder import folders_below, holds_pictures, journal_files, recorded_results

logger = logging.getLogger(__name__)

_IGNORES_CASE = os.name == "nt" or sys.platform == "darwin"  # whether A.png and a.png are usually one file
_RESULT_OF = re.compile(r"(.+)_OUT(_[a-z0-9_]+)?", re.DOTALL)  # the stem of a result, after that of its image
_FIGURES = {"reliability.png", "risk_coverage.png", "UQ_compare.png", "passes.png", "shift.png"}  # of commands

# The names of the results beside the mask or probability map NAME.png: NAME, and then this.
_RESULT = (
    r"(_(prob|std)(_c\d+)?|_((expected_)?entropy|mutual_information|figure|outer|inner)|_mc\d+_c\d+)\.png"
    r"|_(mean|std|probs|(expected_)?entropy|mutual_information)\.npy"
)


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


def evenly_spaced(elements: Sequence[Any], count: int | None) -> list[Any]:
    """As many of the elements, such as images, at equal steps; all if there are no more, or without a number."""
    if count is None or count >= len(elements):
        return list(elements)
    return [elements[i] for i in np.linspace(0, len(elements) - 1, count).round().astype(int)]


# -- what is an image --------------------------------------------------------------------------------------------------


def find_images(
    folder: Path,
    extensions: Iterable[str] = IMAGE_EXTENSIONS,
    recursive: bool = False,
    masks: tuple[Path | None, str | None] = (None, None),
    results: Collection[Path] = (),
) -> list[Path]:
    """The images of a folder, without masks and results among them.

    Results are the files that the journal of an output folder lists, here or in a sub-folder; `NAME_OUT.png` and the
    like in such sub-folders, and beside the image NAME; figures of commands in such sub-folders; and the pictures of a
    review page.

    Args:
        folder: where to look.
        extensions: file extensions of the images.
        recursive: include sub-folders.
        masks: folder and suffix of the ground-truth masks.
        results: further output folders.

    Raises:
        InputError: the folder contains no image, or the masks are in it and belong to none.
    """
    paths = list_images(folder, extensions, recursive)
    below = folders_below(folder, paths)
    further, pictures = {_in_one_case(result.resolve()) for result in results}, {*filter(holds_pictures, below)}
    outputs = {parent for parent in below if journal_files(parent) or _in_one_case(parent.resolve()) in further}
    recorded = recorded_results({folder, *outputs})
    stems = {path.with_suffix("") for path in paths}

    def is_result(path: Path) -> bool:
        if path in recorded or not pictures.isdisjoint(path.parents):
            return True
        in_output, match = not outputs.isdisjoint(path.parents), _RESULT_OF.fullmatch(path.stem)
        if in_output and path.name in _FIGURES:
            return True
        return bool(match) and (in_output or path.with_name(match[1]) in stems)

    kept = [path for path in paths if not is_result(path)]
    if not kept:
        raise InputError(f"{folder} contains only results of predictions, such as {paths[0]}")
    if len(kept) < len(paths):
        logger.info("Ignoring results of predictions in %s: %d", folder, len(paths) - len(kept))
    return without_masks(kept, folder, *masks)


def find_items(
    input_dir: Path,
    output_dir: Path,
    extensions: Iterable[str],
    recursive: bool = False,
    mask_dir: Path | None = None,
    mask_suffix: str | None = None,
) -> list[Item]:
    """The images of a folder, as `find_images` finds them.

    Raises:
        InputError: there are none, the output folder is a file or holds images or the masks, or two images would be
            written to the same file.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"the output folder {output_dir} is a file, a folder was expected")
    images = find_images(input_dir, extensions, recursive, (mask_dir, mask_suffix), [output_dir])
    _check_none_within(output_dir, input_dir, images)
    items = [Item(path, path.relative_to(input_dir)) for path in images]
    logger.info("%d image%s in %s", len(items), "s" if len(items) > 1 else "", input_dir)
    outputs: dict[Path, Item] = {}
    for item in items:
        other = outputs.setdefault(_in_one_case(item.output(output_dir)), item)
        if other is not item:
            raise InputError(
                f"{other.name} and {item.name} would both be written to {item.output(output_dir)}: rename one, or "
                "select one of their file extensions"
            )
    below = {item.name.parent for item in items}
    check_output_folders([output_dir, *(output_dir / folder for folder in below)], images, mask_dir, below)
    return items


# -- what no result may replace ----------------------------------------------------------------------------------------


def identity(path: Path) -> Path:
    """What two paths of the same file share: its name in its real folder, in lower case where case makes no difference.

    A link to a file is another file than the one to which it points.
    """
    return _in_one_case(path.parent.resolve() / path.name)


def _in_one_case(path: Path) -> Path:
    return Path(str(path).lower()) if _IGNORES_CASE else path


def _check_none_within(output_dir: Path, input_dir: Path, images: Iterable[Path]) -> None:
    """Raise an `InputError` if an output folder within the input folder holds images of it."""
    output, above = (_in_one_case(folder.resolve()) for folder in (output_dir, input_dir))
    if output == above or not output.is_relative_to(above):
        return
    for folder, path in {path.parent: path for path in images}.items():
        if _in_one_case(folder.resolve()).is_relative_to(output):
            raise InputError(
                f"the output folder {output_dir} contains {path}, which is no result of an earlier run but an image to "
                "predict: move it, or choose another output folder"
            )


def check_output_folders(
    folders: Iterable[Path], images: Iterable[Path], mask_dir: Path | None, below: Iterable[PurePath] = ()
) -> None:
    """Check that results are written neither among the images nor among the masks.

    Args:
        folders: of the results.
        images: the images.
        mask_dir: folder of the ground-truth masks.
        below: sub-folders of it in which they may be.

    Raises:
        InputError: they are.
    """
    of_images = {_in_one_case(folder.resolve()) for folder in {path.parent for path in images}}
    of_masks = {_in_one_case((mask_dir / folder).resolve()) for folder in (PurePath(), *below)} if mask_dir else ()
    for folder in dict.fromkeys(folders):
        real = _in_one_case(folder.resolve())
        if real in of_images:
            what = "input folder"
        elif real in of_masks:
            what = "mask folder"
        else:
            continue
        raise InputError(
            f"the output folder is the {what}, {folder}: results could replace files there, or be taken for them; "
            "choose another"
        )


def check_replaced(outputs: Iterable[Path], others: Iterable[Path]) -> None:
    """Check that no result replaces one of another image, or another file.

    Args:
        outputs: a result `DIR/NAME.png` of each image, beside which its others are written.
        others: the images, their masks, and what else is to be kept.

    Raises:
        InputError: one does.
    """
    names: dict[Path, Counter[str]] = defaultdict(Counter)  # by folder
    of_stems: dict[tuple[Path, str], tuple[Path, Path]] = {}  # outputs, with their identity, by folder and stem
    for path in outputs:
        output = identity(path)
        of_stems[output.parent, output.stem] = path, output
        names[output.parent][output.name] += 1
    for path in map(identity, others):
        names[path.parent][path.name] += 1
    for folder, name, count in ((folder, *counted) for folder, counts in names.items() for counted in counts.items()):
        for end in (match.start() for match in re.finditer(r"[._]", name)):  # of the stem whose result it may be
            if (folder, name[:end]) not in of_stems:
                continue
            path, output = of_stems[folder, name[:end]]
            is_result = name[end:] == output.suffix or re.fullmatch(_RESULT, name[end:])
            if is_result and (name != output.name or count > 1):
                raise InputError(
                    f"output {path}: one of its results would overwrite {path.with_name(name)}; choose another name "
                    "or folder"
                )

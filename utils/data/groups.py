"""Groups of images, such as all of one patient or lesion, that a split must not divide; digests of what is split."""

import csv
import hashlib
import io
import logging
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from utils.runtime.errors import InputError, bulleted
from utils.runtime.seeds import json_digest

logger = logging.getLogger(__name__)

_COLUMNS = ("image", "group")
_LISTED = 10  # problems in a message


def read_groups(path: Path, images: Sequence[Path], skip_unusable: bool = False) -> dict[Path, str]:
    """The group of each image, before it is decoded, from a CSV file with the columns `image` and `group`.

    An image is named with or without its extension, and with as many of its folders as are needed to tell it from
    others of its name.

    Args:
        path: the CSV file, separated by commas, semicolons or tabs.
        images: the image files.
        skip_unusable: whether some may have no group: those that turn out to be unusable, see `groups_of`.

    Raises:
        InputError: the file cannot be read, or gives an image no group or two, or names several images at once.
    """
    files: dict[str, set[int]] = {}  # by all names that an image may have
    for i, image in enumerate(images):
        for name in _names_of(image):
            files.setdefault(name, set()).add(i)
    groups: dict[int, str] = {}
    problems, unknown = [], []
    for line, name, group in _read_rows(path):
        found = files.get(_normalised(PurePath(name.replace("\\", "/"))), set())
        if not found:
            unknown.append(f"line {line}: {name}: no image has this name")
        elif len(found) > 1:
            problems.append(f"line {line}: {name}: several images have this name")
        elif not group:
            problems.append(f"line {line}: {name}: no group")
        elif groups.setdefault(*found, group) != group:
            problems.append(f"line {line}: {name}: in the groups {groups[next(iter(found))]} and {group}")
        groups.update(dict.fromkeys(found - groups.keys(), group))  # whatever is wrong with them has been said
    if not (skip_unusable and groups):
        problems += [f"{image.name}: no group" for i, image in enumerate(images) if i not in groups]
    if problems:
        title = f"{path} does not have exactly one group for each of the {len(images)} images"
        others = f", and {len(unknown)} of its lines name{'s' * (len(unknown) == 1)} none of them"
        raise InputError(bulleted(title + others * bool(unknown), problems + unknown, _LISTED))
    if unknown:  # such as images that have been skipped
        logger.info("Lines of %s that name none of the images: %d", path, len(unknown))
    return {images[i]: group for i, group in sorted(groups.items())}


def groups_of(images: Sequence[Path], group_of: Mapping[Path, str] | None) -> list[str] | None:
    """The groups of images that can be used; None without groups.

    Raises:
        InputError: an image has none.
    """
    if group_of is None:
        return None
    if missing := [image.name for image in images if image not in group_of]:
        raise InputError(bulleted(f"{len(missing)} of {len(images)} images have no group", missing, _LISTED))
    return [group_of[image] for image in images]


def names_digest(images: Sequence[Path], folder: Path) -> str:
    """A digest of the names of images within their folder, and of their order, to recognise them."""
    return json_digest([image.relative_to(folder).as_posix() for image in images])


def name_digests(images: Sequence[Path], folder: Path) -> list[set[str]]:
    """Digests of each image's name within its folder, with and without its extension, to recognise single images."""

    def digest(name: str) -> str:
        return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]

    names = [image.relative_to(folder) for image in images]
    return [{digest(name.as_posix()), digest(_normalised(name.with_suffix("")))} for name in names]


def count_named(names: Sequence[set[str]], recorded: Collection[str]) -> int:
    """How many images, of which these are the `name_digests`, are among those recorded."""
    return sum(not one.isdisjoint(recorded) for one in names)


def _names_of(image: Path) -> Iterator[str]:
    """`c.jpg`, `c`, `b/c.jpg`, `b/c`, ... for `a/b/c.jpg`."""
    parts = image.parts
    for first in range(len(parts)):
        name = PurePath(*parts[first:])
        yield _normalised(name)
        yield _normalised(name.with_suffix(""))


def _normalised(name: PurePath) -> str:
    """A name in one of the forms of Unicode: `ä` may be one character or two, in a file name as in a CSV file."""
    return unicodedata.normalize("NFC", name.as_posix())


def _read_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, image and group of each row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text"
        raise InputError(f"{path} cannot be read as a CSV file of groups ({reason})") from error
    (_, header), *rows = _parse(text, path)
    columns = [name.strip().lower() for name in header]
    if not set(_COLUMNS) <= set(columns):
        raise InputError(f"{path} has the columns {', '.join(columns) or 'of an empty file'}; expected image and group")
    image, group = (columns.index(name) for name in _COLUMNS)
    for line, row in rows:
        if any(cell.strip() for cell in row):
            cells = [cell.strip() for cell in row] + [""] * len(columns)
            yield line, cells[image], cells[group]


def _parse(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the number of its last line; an empty one, if there is none."""
    header = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    parsed: list[tuple[int, list[str]]] = []
    try:
        for row in rows:
            parsed.append((rows.line_num, row))
    except csv.Error as error:
        line = parsed[-1][0] + 1 if parsed else 1
        raise InputError(f"{path}, line {line}: not a row of a CSV file ({error}); check its quotes") from error
    return parsed or [(0, [])]

"""Fetch the images and masks of the ISIC 2016 challenge, part 1 (Gutman et al., arXiv:1605.01397).

`python -m utils.download_isic` puts 900 pairs into data/imgs and data/masks, 379 into data/imgs_test and
data/masks_test. What is there already is not fetched again, and an interrupted download goes on where it stopped, which
torchvision's own does not.
"""

import argparse
import http.client
import logging
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from tqdm import tqdm

from utils import cli
from utils.data_loading import pair_files
from utils.errors import InputError
from utils.image_io import READABLE_EXTENSIONS, read_image, whole_file

logger = logging.getLogger(__name__)

URL = "https://isic-challenge-data.s3.amazonaws.com/2016"
PAGE = "https://challenge.isic-archive.com/data/#2016"


class Archive(NamedTuple):
    """A zip file of the challenge, the folder that its files go to, and how many there are."""

    name: str
    folder: str
    count: int


ARCHIVES = (
    Archive("ISBI2016_ISIC_Part1_Training_Data.zip", "imgs", 900),
    Archive("ISBI2016_ISIC_Part1_Training_GroundTruth.zip", "masks", 900),
    Archive("ISBI2016_ISIC_Part1_Test_Data.zip", "imgs_test", 379),
    Archive("ISBI2016_ISIC_Part1_Test_GroundTruth.zip", "masks_test", 379),
)

_NAME = re.compile(r"ISIC_\d{7}(_Segmentation)?\.(jpg|png)")
_UNRELIABLE = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_ATTEMPTS = 5  # in a row that bring nothing
_WAIT = 2.0  # seconds before the second one, twice as many before the next
_CHUNK = 2**18  # bytes


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.download_isic", description=__doc__)
    cli.add_defaulted(
        parser,
        "--data-dir",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="gets imgs, masks, imgs_test, masks_test",
    )
    cli.add_defaulted(parser, "--url", default=URL, help="of the folder that holds the archives")
    return parser


def main(args: argparse.Namespace) -> None:
    if not args.url.startswith(("http://", "https://")):
        raise InputError(f"--url {args.url}: an address that begins with https:// was expected")
    download = args.data_dir / ".download"
    for archive in ARCHIVES:
        folder = args.data_dir / archive.folder
        count = count_images(folder)
        if count > archive.count:
            raise InputError(
                f"{folder} holds {count} images, the challenge's are {archive.count}: move the others away"
            )
        if count == archive.count:
            logger.info("%s: all %d files are there already", folder, archive.count)
            continue
        path = download / archive.name
        if not path.exists():
            fetch(f"{args.url.rstrip('/')}/{archive.name}", path)
        unpack(path, archive.count, folder)
        path.unlink()
        logger.info("%s: %d files", folder, archive.count)
    shutil.rmtree(download, ignore_errors=True)
    for imgs, masks in (("imgs", "masks"), ("imgs_test", "masks_test")):
        pair_files(args.data_dir / imgs, args.data_dir / masks)
    logger.info("Every image has its mask")


def count_images(folder: Path) -> int:
    """The number of images in a folder, 0 if there is none.

    Raises:
        InputError: some do not belong to the challenge.
    """
    paths = [path for path in folder.glob("[!.]*") if path.suffix.lower() in READABLE_EXTENSIONS]
    others = [path.name for path in paths if not _NAME.fullmatch(path.name)]
    if others:
        raise InputError(
            f"{folder} holds images that do not belong to the challenge, such as {min(others)}: move them away, or "
            "choose another --data-dir"
        )
    return sum(path.stat().st_size > 0 for path in paths)


def fetch(url: str, path: Path) -> None:
    """Fetch a file. What an earlier call has got of it is kept, and a connection that breaks is taken up again.

    Raises:
        InputError: it is not to be had.
    """
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    failures = 0
    with cli.progress(desc=path.name, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            before = part.stat().st_size
            try:
                _fetch_rest(url, part, bar)
                break
            except _UNRELIABLE as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise _out_of_reach(url, error) from error
                failures = 1 if part.stat().st_size > before else failures + 1
                if failures == _ATTEMPTS:
                    raise _out_of_reach(url, error) from error
                logger.info("%s: %s; trying again", path.name, getattr(error, "reason", error))
                time.sleep(_WAIT * 2 ** (failures - 1))
    part.rename(path)


def _out_of_reach(url: str, error: Exception) -> InputError:
    reason = getattr(error, "reason", None) or error
    return InputError(
        f"{url} cannot be fetched ({reason}). The next call goes on from here; by hand: {PAGE}, images and masks into "
        "the folders that the README names"
    )


def _fetch_rest(url: str, part: Path, bar: tqdm) -> None:
    """Append to a file what it lacks."""
    start = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return  # it is whole
        part.write_bytes(b"")
        raise ConnectionError("the file has changed on the server") from error
    with response:
        goes_on = (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-")
        if not (response.status == http.client.PARTIAL_CONTENT and goes_on):
            start = 0  # the server sends it from the beginning
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        free = shutil.disk_usage(part.parent).free
        if total and free < total - start:
            raise InputError(f"{url} has {total / 1e6:.0f} MB, {part.parent} {free / 1e6:.0f} MB of free space")
        bar.total, bar.n, bar.initial, bar.last_print_n = total, start, start, start
        with open(part, "ab") as file:
            file.truncate(start)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total not in (None, part.stat().st_size):
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes came")


def unpack(path: Path, count: int, folder: Path) -> None:
    """Unpack the images of an archive, whatever folders they are in, once all of them have been seen to open.

    Raises:
        InputError: it is damaged, and has been removed; or it holds another number of images.
    """
    building = path.with_suffix("")
    shutil.rmtree(building, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            # A name, not a path, so that nothing leaves the folder.
            members = {PureWindowsPath(info.filename).name: info for info in archive.infolist()}
            members = {name: info for name, info in members.items() if _NAME.fullmatch(name)}
            if len(members) != count:
                raise InputError(f"{path} holds {len(members)} images, {count} were expected")
            for name, info in cli.progress(members.items(), desc=f"Unpacking {path.name}", unit="file"):
                with archive.open(info) as source, whole_file(building / name) as target:
                    shutil.copyfileobj(source, target)
                read_image(building / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, InputError) as error:
        with suppress(OSError):
            path.unlink()
        raise InputError(
            f"{path.name} is damaged ({error}) and has been removed: the next call fetches it again"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    for name in members:
        (building / name).replace(folder / name)
    building.rmdir()


if __name__ == "__main__":
    cli.run(main, get_args_parser())

"""Download the images and masks of the ISIC 2016 challenge, part 1 (Gutman et al., arXiv:1605.01397).

`python -m utils.download_isic` writes 900 pairs to data/imgs and data/masks, 379 to data/imgs_test and data/masks_test.
Existing files are not downloaded again, and an interrupted download is resumed.
"""

import argparse
import http.client
import logging
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from tqdm import tqdm

from utils import arguments, cli
from utils.data.images import IMAGE_EXTENSIONS, read_image
from utils.data.pairing import pair_files
from utils.runtime.atomic_files import atomic_file, rename
from utils.runtime.console import progress
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

URL = "https://isic-challenge-data.s3.amazonaws.com/2016"
PAGE = "https://challenge.isic-archive.com/data/#2016"


class Archive(NamedTuple):
    """A zip file of the challenge, the folder for its files, and their number."""

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
_ATTEMPTS = 5  # in a row without progress
RETRY_DELAY = 2.0  # seconds before the second attempt; doubled before each further one
_CHUNK = 2**18  # bytes


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.download_isic", description=__doc__)
    arguments.add_with_default(
        parser,
        "--data-dir",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder for imgs, masks, imgs_test, masks_test",
    )
    arguments.add_with_default(parser, "--url", default=URL, help="address of the folder of the archives")
    return parser


def main(args: argparse.Namespace, archives: Sequence[Archive] = ARCHIVES, retry_delay: float = RETRY_DELAY) -> None:
    cli.require_one_process()
    if not is_web_address(args.url):
        words = "was expected, in ASCII, without spaces or a user name"
        raise InputError(f"--url {args.url}: an address such as {URL} {words}")
    downloads = args.data_dir / ".download"
    for archive in archives:
        folder = args.data_dir / archive.folder
        count = count_images(folder)
        if count > archive.count:
            raise InputError(
                f"{folder} contains {count} images, the challenge has {archive.count}: move the others away"
            )
        if count == archive.count:
            logger.info("%s: all %d files already exist", folder, archive.count)
            continue
        path = downloads / archive.name
        if not path.exists():
            download_file(f"{args.url.rstrip('/')}/{archive.name}", path, retry_delay)
        unpack(path, archive.count, folder)
        path.unlink()
        logger.info("%s: %d files", folder, archive.count)
    shutil.rmtree(downloads, ignore_errors=True)
    for imgs, masks in (("imgs", "masks"), ("imgs_test", "masks_test")):
        pair_files(args.data_dir / imgs, args.data_dir / masks)
    logger.info("Every image has its mask")


def is_web_address(url: str) -> bool:
    """Whether something can be requested from an address: others fail in ways that a second attempt does not change."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:
        return False
    usual = parts.scheme in ("http", "https") and host and port != 0 and "@" not in parts.netloc
    return bool(usual and re.fullmatch("[!-~]+", url))


def count_images(folder: Path) -> int:
    """The number of images in a folder, 0 if there is none.

    Raises:
        InputError: some do not belong to the challenge.
    """
    paths = [path for path in folder.glob("[!.]*") if path.suffix.lower() in IMAGE_EXTENSIONS]
    others = [path.name for path in paths if not _NAME.fullmatch(path.name)]
    if others:
        raise InputError(
            f"{folder} contains images that do not belong to the challenge, such as {min(others)}: move them away, or "
            "choose another --data-dir"
        )
    return sum(path.stat().st_size > 0 for path in paths)


def download_file(url: str, path: Path, retry_delay: float = RETRY_DELAY) -> None:
    """Download a file; resume the partial file of an earlier call, and retry after connection errors.

    Args:
        url: of the file.
        path: where it is written.
        retry_delay: seconds before the second attempt; doubled before each further one.

    Raises:
        InputError: it is not available.
    """
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    failures = 0
    with progress(desc=path.name, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            before = part.stat().st_size
            try:
                _download_rest(url, part, bar)
                break
            except _UNRELIABLE as error:
                reason = getattr(error, "reason", error)
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if refused or isinstance(reason, ssl.SSLCertVerificationError):
                    raise _not_available(url, error) from error
                failures = 1 if part.stat().st_size > before else failures + 1
                if failures == _ATTEMPTS:
                    raise _not_available(url, error) from error
                logger.info("%s: %s; retrying", path.name, reason)
                time.sleep(retry_delay * 2 ** (failures - 1))
    rename(part, path)


def _not_available(url: str, error: Exception) -> InputError:
    reason = getattr(error, "reason", None) or error
    return InputError(
        f"{url} cannot be downloaded ({reason}). Run the command again to resume; to download by hand: {PAGE}, with "
        "images and masks into the folders that the README names"
    )


def _download_rest(url: str, part: Path, bar: tqdm) -> None:
    """Append the missing bytes to a partial file."""
    start = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return  # it is complete
        part.write_bytes(b"")
        raise ConnectionError("the file has changed on the server") from error
    with response:
        resumes = (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-")
        if not (response.status == http.client.PARTIAL_CONTENT and resumes):
            start = 0  # the server sends the whole file
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        free = shutil.disk_usage(part.parent).free
        if total and free < total - start:
            raise InputError(f"{url} requires {total / 1e6:.0f} MB, {part.parent} has {free / 1e6:.0f} MB free")
        bar.total, bar.n, bar.initial, bar.last_print_n = total, start, start, start
        with open(part, "ab") as file:
            file.truncate(start)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total not in (None, part.stat().st_size):
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes received")


def unpack(path: Path, count: int, folder: Path) -> None:
    """Extract the images of an archive, from whatever folders in it, once every one of them can be read.

    Raises:
        InputError: the archive is damaged or has another number of images, and has been removed.
    """
    building = path.with_suffix("")
    shutil.rmtree(building, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            # Names without their paths, so that nothing is written outside the folder.
            members = {PureWindowsPath(info.filename).name: info for info in archive.infolist()}
            members = {name: info for name, info in members.items() if _NAME.fullmatch(name)}
            if len(members) != count:
                raise InputError(f"{path} contains {len(members)} images, {count} were expected")
            for name, info in progress(members.items(), desc=f"Unpacking {path.name}", unit="file"):
                with archive.open(info) as source, atomic_file(building / name) as target:
                    shutil.copyfileobj(source, target)
                read_image(building / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, InputError) as error:
        with suppress(OSError):
            path.unlink()
        raise InputError(
            f"{path.name} is damaged ({error}) and has been removed: run the command again to download it again"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    for name in members:
        rename(building / name, folder / name)
    building.rmdir()


if __name__ == "__main__":
    cli.run(main, get_args_parser())

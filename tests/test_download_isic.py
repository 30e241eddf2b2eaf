"""The download of the challenge's images, from a server that serves files, breaks connections, and lies."""

import io
import ssl
import threading
import urllib.error
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import assert_one_clear_line, run_module
from utils import download_isic
from utils.download_isic import ARCHIVES, URL, Archive, download_file, get_args_parser, is_web_address, main, unpack
from utils.runtime.errors import InputError


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def encoded_image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB" if kind == "jpeg" else "L", (8, 6), 200).save(buffer, kind)
    return buffer.getvalue()


def archives(n_training: int, n_test: int) -> dict[str, bytes]:
    """The four archives of the challenge, by their names, each with that many small files."""
    content = {}
    for archive, n in zip(ARCHIVES, (n_training, n_training, n_test, n_test), strict=True):
        kind, suffix = ("jpeg", ".jpg") if archive.folder.startswith("imgs") else ("png", "_Segmentation.png")
        folder = archive.name.removesuffix(".zip")
        files = {f"{folder}/ISIC_{i:07d}{suffix}": encoded_image(kind) for i in range(n)}
        content[archive.name] = zipped({f"__MACOSX/{folder}/._ISIC_0000000{suffix}": b"", **files})
    return content


class Server(ThreadingHTTPServer):
    """Serves `files`, in the way that the other attributes determine.

    Attributes:
        requests: the path and the Range header of each request.
        break_after: number of bytes after which the connection is closed; None for never.
        lie: added to every Content-Length.
        ranges: whether ranges are served.
        status: of every response, unless it is None.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.break_after, self.lie, self.ranges, self.status = None, 0, True, None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, requested = self.server, self.headers.get("Range")
        server.requests.append((self.path, requested))
        content = server.files.get(self.path.lstrip("/"))
        if content is None or server.status:
            self.send_error(server.status or 404)
            return
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested and server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start + server.lie))
        self.end_headers()
        self.wfile.write(content[start:][: server.break_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that runs in a thread."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # shutdown waits as long
        yield server
        server.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_whole_challenge_and_nothing_twice(server: Server, tmp_path: Path):
    server.files = archives(900, 379)
    command = ("utils.download_isic", "--data-dir", tmp_path / "data", "--url", server.url)
    result = run_module(*command)
    assert result.returncode == 0, result.stderr
    assert "Every image has its mask" in result.stderr
    for archive in ARCHIVES:
        assert len(list((tmp_path / "data" / archive.folder).iterdir())) == archive.count
    assert (tmp_path / "data" / "masks_test" / "ISIC_0000378_Segmentation.png").read_bytes() == encoded_image("png")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"imgs", "masks", "imgs_test", "masks_test"}
    assert len(server.requests) == 4
    again = run_module(*command)
    assert again.returncode == 0
    assert again.stderr.count("files already exist") == 4
    assert len(server.requests) == 4


def test_broken_connection_is_resumed(server: Server, tmp_path: Path):
    content = bytes(range(256)) * 40
    server.files, server.break_after = {"a.zip": content}, 3000
    download_file(f"{server.url}/a.zip", tmp_path / "a.zip", retry_delay=0)
    assert (tmp_path / "a.zip").read_bytes() == content
    ranges = [requested for _, requested in server.requests]
    assert ranges == [None, *(f"bytes={start}-" for start in (3000, 6000, 9000))]
    assert names(tmp_path) == ["a.zip"]


def test_connection_that_breaks_again_and_again_is_resumed(server: Server, tmp_path: Path):
    """As long as each time something arrives."""
    server.files, server.break_after = {"a.zip": bytes(10_000)}, 500
    download_file(f"{server.url}/a.zip", tmp_path / "a.zip", retry_delay=0)
    assert (tmp_path / "a.zip").read_bytes() == bytes(10_000)
    assert len(server.requests) == 20


def test_partial_file_is_resumed(server: Server, tmp_path: Path):
    content = bytes(range(256)) * 40
    server.files = {"a.zip": content}
    (tmp_path / "a.zip.part").write_bytes(content[:7000])
    download_file(f"{server.url}/a.zip", tmp_path / "a.zip", retry_delay=0)
    assert (tmp_path / "a.zip").read_bytes() == content
    assert server.requests == [("/a.zip", "bytes=7000-")]
    (tmp_path / "b.zip.part").write_bytes(content)  # already complete
    server.files = {"b.zip": content, "c.zip": content}
    download_file(f"{server.url}/b.zip", tmp_path / "b.zip", retry_delay=0)
    assert (tmp_path / "b.zip").read_bytes() == content
    (tmp_path / "c.zip.part").write_bytes(content + b"more than the server has")
    download_file(f"{server.url}/c.zip", tmp_path / "c.zip", retry_delay=0)
    assert (tmp_path / "c.zip").read_bytes() == content
    (tmp_path / "b.zip.part").write_bytes(b"something else")
    server.ranges = False
    download_file(f"{server.url}/b.zip", tmp_path / "b.zip", retry_delay=0)
    assert (tmp_path / "b.zip").read_bytes() == content


@pytest.mark.parametrize(("lie", "words"), [(10, "5120 of 5130 bytes received"), (10**15, "MB free")])
def test_content_length_is_too_large(server: Server, tmp_path: Path, lie: int, words: str):
    server.files, server.lie = {"a.zip": bytes(5120)}, lie
    server.ranges = False
    with pytest.raises(InputError, match=words):
        download_file(f"{server.url}/a.zip", tmp_path / "a.zip", retry_delay=0)
    assert not (tmp_path / "a.zip").exists()
    assert len(server.requests) == (5 if lie == 10 else 1)


def test_content_length_is_too_small(server: Server, tmp_path: Path):
    small = [archive._replace(count=2) for archive in ARCHIVES]
    server.files, server.lie = archives(2, 2), -100
    arguments = get_args_parser().parse_args(["--data-dir", str(tmp_path), "--url", server.url])
    with pytest.raises(InputError, match=r"is damaged .* and has been removed"):
        main(arguments, small, retry_delay=0)
    assert not list(tmp_path.rglob("*.zip*"))
    server.lie = 0
    main(arguments, small, retry_delay=0)
    assert names(tmp_path / "imgs") == ["ISIC_0000000.jpg", "ISIC_0000001.jpg"]
    assert len(names(tmp_path)) == 8


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 5)])
def test_server_refuses(server: Server, tmp_path: Path, status: int, requests: int):
    server.files, server.status = {"a.zip": b"content"}, status
    with pytest.raises(InputError, match=r"cannot be downloaded .* by hand"):
        download_file(f"{server.url}/a.zip", tmp_path / "a.zip", retry_delay=0)
    assert len(server.requests) == requests


def test_no_server(tmp_path: Path):
    with pytest.raises(InputError, match="refused"):
        download_file("http://127.0.0.1:1/a.zip", tmp_path / "a.zip", retry_delay=0)


def test_no_file_leaves_its_folder(tmp_path: Path):
    evil = {
        "../../ISIC_0000001.jpg": encoded_image("jpeg"),
        "/tmp/ISIC_0000002.jpg": encoded_image("jpeg"),
        "..\\..\\ISIC_0000003.jpg": encoded_image("jpeg"),
        "../../evil.sh": b"#!/bin/sh",
        "x/../../../etc/passwd": b"",
    }
    path = tmp_path / "a" / "b" / "x.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(zipped(evil))
    unpack(path, 3, tmp_path / "a" / "b" / "imgs")
    assert names(tmp_path) == [
        "a/b/imgs/ISIC_0000001.jpg",
        "a/b/imgs/ISIC_0000002.jpg",
        "a/b/imgs/ISIC_0000003.jpg",
        "a/b/x.zip",
    ]


@pytest.mark.parametrize("damage", ["count", "image", "crc", "cut", "text"])
def test_damaged_archives_are_removed(damage: str, tmp_path: Path):
    files = {f"ISIC_000000{i}.jpg": encoded_image("jpeg") for i in range(3)}
    if damage == "count":
        files.popitem()
    if damage == "image":
        files["ISIC_0000001.jpg"] = b"no image"
    content = zipped(files)
    if damage == "crc":
        content = content.replace(b"JFIF", b"JFIX", 1)
    content = {"cut": content[:-10], "text": b"<html>no such file</html>"}.get(damage, content)
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged .* and has been removed"):
        unpack(tmp_path / "x.zip", 3, tmp_path / "imgs")
    assert not (tmp_path / "x.zip").exists()
    assert not (tmp_path / "imgs").exists()


@pytest.mark.parametrize(
    "url",
    [
        *("isic.org/2016", "ftp://isic.org/2016", "http://", "http:///2016", "http://localhost:9/ä", "http://a b/"),
        *(
            "http://[::1",
            "http://localhost:abc/x",
            "http://localhost:99999/x",
            "http://a..b/",
            "http://me:pw@isic.org/",
        ),
    ],
)
def test_addresses_that_can_never_work(tmp_path: Path, url: str):
    arguments = get_args_parser().parse_args(["--data-dir", str(tmp_path), "--url", url])
    with pytest.raises(InputError, match=r"--url .*: an address such as https://"):
        main(arguments)


def test_addresses_of_folders():
    for url in (URL, "HTTP://localhost:8000/", "https://[::1]:80/a%20b?c=d", "http://127.0.0.1"):
        assert is_web_address(url)


def test_other_images_are_left_alone(server: Server, tmp_path: Path):
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "mine.jpg").write_bytes(b"")
    result = run_module("utils.download_isic", "--data-dir", tmp_path, "--url", server.url)
    assert_one_clear_line(result, "do not belong to the challenge, such as mine.jpg", "--data-dir")
    assert server.requests == []
    assert names(tmp_path) == ["imgs/mine.jpg"]


def test_archives_are_those_of_the_challenge():
    assert Archive("ISBI2016_ISIC_Part1_Training_Data.zip", "imgs", 900) in ARCHIVES
    assert [archive.count for archive in ARCHIVES] == [900, 900, 379, 379]
    assert download_isic.URL == "https://isic-challenge-data.s3.amazonaws.com/2016"


def test_certificate_that_cannot_be_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A second attempt would not change it."""
    attempts = []

    def refuse(*arguments: object, **_: object) -> None:
        attempts.append(arguments)
        raise urllib.error.URLError(ssl.SSLCertVerificationError("unable to get local issuer certificate"))

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(InputError, match="unable to get local issuer certificate"):
        download_file("https://example.org/a.zip", tmp_path / "a.zip", retry_delay=0)
    assert len(attempts) == 1

"""Broken and hostile input in large numbers: only the documented errors may result.

Each test tries 150 inputs; `FUZZ_EXAMPLES=25000 python -m pytest tests/test_fuzzing.py` tries that many.
"""

import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import make_image
from tests.test_architecture import COMMANDS, SCRIPTS
from unet import BayesianUNet
from utils.checkpoint import TrainedModel, load_model, save_checkpoint
from utils.data.images import image_size, read_image
from utils.data.masks import read_mask
from utils.runtime.errors import InputError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def originals() -> list[bytes]:
    """Small images of all kinds."""
    image, mask = make_image(0, (21, 17))
    made = [encoded(image, kind) for kind in ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "TGA")]
    made += [encoded(image.convert(mode), "TIFF") for mode in ("CMYK", "LAB", "L", "1", "F", "I")]
    made += [encoded(mask.convert(mode), "PNG") for mode in ("P", "L", "1", "RGBA", "LA")]
    made.append(encoded(Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000), "PNG"))
    return made


def checkpoints() -> list[bytes]:
    """The smallest models, of this project and as the original project writes them."""
    made = []
    torch.manual_seed(0)
    network = BayesianUNet(base_channels=1, dropout=0.2)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "m.pth", TrainedModel(network, (32, 32), temperatures={"softmax": 1.2}))
        made.append((Path(folder) / "m.pth").read_bytes())
    buffer = io.BytesIO()
    torch.save({**network.state_dict(), "mask_values": [0, 255]}, buffer)
    return [*made, buffer.getvalue()]


IMAGES, CHECKPOINTS = originals(), checkpoints()


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A file with bytes changed, removed, inserted, repeated or cut off; or random bytes."""
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["change", "remove", "insert", "cut", "repeat"]))
        if kind == "change" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "remove":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=12))
        elif kind == "cut":
            del content[at:]
        elif kind == "repeat":
            content[at:at] = content[at : at + draw(st.integers(1, 60))]
    return bytes(content) if draw(st.integers(0, 20)) else draw(st.binary(max_size=200))


@contextmanager
def attempt(folder: Path, content: bytes) -> Iterator[Path]:
    """A file of that content, which may be refused only by an `InputError` that names it."""
    path = folder / "fuzzed"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged files
        try:
            yield path
        except InputError as error:
            assert str(path) in str(error)


@fuzzed
@given(damaged(IMAGES))
def test_images(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    with attempt(tmp_path_factory.getbasetemp(), content) as path:
        image_size(path)
    with attempt(tmp_path_factory.getbasetemp(), content) as path:
        image = read_image(path)
        assert (image.mode, image.size) == ("RGB", image_size(path))


@fuzzed
@given(damaged(IMAGES))
def test_masks(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    with attempt(tmp_path_factory.getbasetemp(), content) as path:
        mask = read_mask(path)
        assert (mask.values.dtype, mask.codes.ndim) == (np.int64, 2)
        assert mask.count().pixels.sum() == mask.codes.size


@fuzzed
@example(b"J")  # was a struct.error
@given(damaged(CHECKPOINTS))
def test_models(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    with attempt(tmp_path_factory.getbasetemp(), content) as path:
        model = load_model(path)
        assert all(torch.isfinite(value).all() for value in model.network.state_dict().values())


PROGRAMS = [*SCRIPTS, *(f"utils.{name}" for name in sorted(COMMANDS))]
FLAGS = {name: [*import_module(name).get_args_parser()._option_string_actions] for name in PROGRAMS}
VALUES = st.one_of(
    st.sampled_from(
        ["0", "-1", "1", "3", "nan", "inf", "-inf", "1e400", "9" * 30, "0x10", "", " ", ".", "/", "é", "½"]
    ),
    st.floats().map(str),
    st.integers().map(str),
    st.text(st.characters(exclude_characters="\0"), max_size=12),
)


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A program, and some of its flags and some values in any order."""
    program = draw(st.sampled_from(PROGRAMS))
    return program, draw(st.lists(st.one_of(st.sampled_from(FLAGS[program]), VALUES), max_size=8))


@fuzzed
@given(command_lines())
def test_command_lines(command_line: tuple[str, list[str]]):
    program, arguments = command_line
    parser = import_module(program).get_args_parser()
    stderr, stdout = sys.stderr, sys.stdout
    sys.stderr = sys.stdout = io.StringIO()
    try:
        parser.parse_args(arguments)
    except SystemExit as stop:
        assert stop.code in (0, 2)
    finally:
        sys.stderr, sys.stdout = stderr, stdout

"""A folder as it may come from anywhere: unusual images are predicted, broken ones fail alone and are named."""

import ctypes
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ENVIRONMENT, ROOT, make_folders, make_image, run_script


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size, enough for a decompression bomb to be recognised."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, dict[str, tuple[int, int]], set[str]]:
    """A folder, the sizes of the images in it that are to be predicted, and the names of those that cannot."""
    folder = tmp_path / "in put"
    folder.mkdir()
    image = make_image(3, (60, 40))[0]
    variants = {
        "a name with spaces.jpg": image,
        "dots.in.the.name.v1.2.png": image,
        "Läsion_皮膚_🔬.png": image,
        "x" * 200 + ".png": image,
        "-dash.png": image,
        "grey.png": image.convert("L"),
        "palette.png": image.convert("P"),
        "alpha.png": image.convert("RGBA"),
        "black-and-white.png": image.convert("1"),
        "cmyk.jpg": image.convert("CMYK"),
        "sixteen.png": Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
        "one.png": image.resize((1, 1)),
        "thin.png": image.resize((1, 5000)),
        "flat.bmp": image.resize((3000, 2)),
        "pages.tif": image,
        "animated.png": image,
    }
    for name, variant in variants.items():
        options = {"save_all": True, "append_images": [image.resize((5, 5))]} if name == "pages.tif" else {}
        if name == "animated.png":
            options = {"save_all": True, "append_images": [image.rotate(90)]}
        variant.save(folder / name, **options)
    sizes = {name: variant.size for name, variant in variants.items()}
    rotated = Image.Exif()
    rotated[0x0112] = 6
    image.save(folder / "rotated.jpg", exif=rotated)
    sizes["rotated.jpg"] = (40, 60)

    (folder / "empty.png").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes((folder / "a name with spaces.jpg").read_bytes()[:400])
    (folder / "text.png").write_text("no image")
    (folder / "bomb.png").write_bytes(png_header(20_000, 20_000))
    (folder / "wide bomb.png").write_bytes(png_header(2**31 - 1, 1))
    (folder / "folder.png").mkdir()  # ignored
    (folder / "link.png").symlink_to("nowhere")
    return folder, sizes, {"empty.png", "truncated.jpg", "text.png", "bomb.png", "wide bomb.png", "link.png"}


def test_limit_of_megapixels_is_that_of_the_flag(tmp_path: Path, model_file: Path):
    for side in (20, 40):
        Image.new("L", (side, side)).save(tmp_path / f"{side}.png")
    flags = ("--input-dir", tmp_path, "--output-dir", tmp_path / "o", "-m", model_file, "--max-megapixels", 0.001)
    result = run_script("predict.py", *flags)
    assert result.returncode == 1
    assert re.findall(r"(\d+)\.png: has more than 0\.001 megapixels: .*--max-megapixels", result.stderr) == ["40"]
    assert [path.name for path in (tmp_path / "o").glob("*.png")] == ["20_OUT.png"]


@pytest.mark.parametrize("script", ["predict.py", "predict_prob_tta.py"])
def test_folder_of_everything(folder, script: str, tmp_path: Path, model_file: Path):
    inputs, sizes, broken = folder
    out = tmp_path / "o"
    result = run_script(script, "--input-dir", inputs, "--output-dir", out, "-m", model_file)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"{len(broken)} failed:" in result.stderr
    failed = {line.strip().split(": ")[0] for line in result.stderr.splitlines() if line.startswith("  ")}
    assert failed == broken
    assert {path.name for path in out.glob("*.png")} == {f"{Path(name).stem}_OUT.png" for name in sizes}
    for name, size in sizes.items():
        with Image.open(out / f"{Path(name).stem}_OUT.png") as mask:
            assert (mask.size, mask.mode) == (size, "L"), name


def test_single_images_of_every_kind(folder, tmp_path: Path, model_file: Path):
    inputs, sizes, _ = folder
    names = ["one.png", "thin.png", "Läsion_皮膚_🔬.png", "x" * 200 + ".png", "bomb.png"]
    outputs = [tmp_path / "o" / f"{Path(name).stem}.png" for name in names]
    result = run_script(
        "predict_bayesian.py", "-i", *(inputs / name for name in names), "-o", *outputs, "--mc", 2, "-m", model_file
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "1 failed:" in result.stderr
    for name, output in zip(names[:-1], outputs[:-1], strict=True):
        with Image.open(output) as mask:
            assert mask.size == sizes[name]
        assert output.with_name(f"{output.stem}_figure.png").is_file()


def test_training_lists_every_broken_pair(folder, tmp_path: Path):
    inputs, sizes, broken = folder
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in sizes | dict.fromkeys(broken, (60, 40)):
        Image.new("L", sizes.get(name, (60, 40))).save(masks / f"{Path(name).stem}.png")
    common = ["--imgs-dir", inputs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    result = run_script("train_bayesian.py", *common, "--checkpoint-dir", tmp_path / "c", "--wandb", "disabled")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for name in broken:
        assert name in result.stderr
    assert not (tmp_path / "c").exists()


def without_privileges() -> None:
    """Make the next program obey file permissions, even if root runs it."""
    if sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None).prctl
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; refused to users who have no privileges anyway


def run_without_privileges(command: list, folder: Path, mode: int) -> subprocess.CompletedProcess:
    """Run a script as a user for whom a folder has these permissions."""
    folder.chmod(mode)
    try:
        return subprocess.run(
            [sys.executable, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=240,
            env=ENVIRONMENT,
            cwd=ROOT,
            preexec_fn=without_privileges,
        )
    finally:
        folder.chmod(0o700)


def test_results_beside_images_that_cannot_be_written(tmp_path: Path, model_file: Path):
    imgs, _ = make_folders(tmp_path, 2, (40, 30))
    before = sorted(imgs.iterdir())
    result = run_without_privileges(["predict_bayesian.py", "-i", before[0], "-m", model_file], imgs, 0o500)
    assert result.returncode == 2
    assert result.stderr == f"Error: {imgs} cannot be written (Permission denied)\n"
    assert sorted(imgs.iterdir()) == before


@pytest.mark.parametrize(
    ("mode", "words"),
    [(0, "the folder cannot be read (Permission denied)"), (0o500, "cannot be written (Permission denied)")],
)
def test_folders_without_permission(mode: int, words: str, tmp_path: Path, model_file: Path):
    imgs, _ = make_folders(tmp_path, 2, (40, 30))
    out = tmp_path / "o"
    out.mkdir()
    locked = out if mode else imgs
    command = ["predict.py", "--input-dir", imgs, "--output-dir", out, "-m", model_file]
    result = run_without_privileges(command, locked, mode)
    assert result.returncode == 2
    assert words in result.stderr
    assert str(locked) in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(out.iterdir())

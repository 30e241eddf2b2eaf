"""Runs that are interrupted and resumed, and full disks."""

import json
import resource
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from tests.conftest import FORKS, assert_one_clear_line, make_folders, run_module, run_script, start_script
from utils.pipeline.summary import read_summary


def files(folder: Path) -> dict[str, bytes]:
    """The contents of all files of a folder except hidden ones."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("[!.]*") if p.is_file()}


@pytest.mark.parametrize(
    ("script", "more", "kills"),
    [
        ("predict.py", [], [9]),
        ("predict_prob_direct.py", ["--save-npy"], [1, 9, 16]),
        ("predict_bayesian.py", ["--mc", "2", "--save-prob", "--save-mean-std"], [13]),
    ],
)
def test_resume_after_a_kill(script: str, more: list[str], kills: list[int], tmp_path: Path, model_file: Path):
    single = script == "predict_bayesian.py"  # which draws a figure of each image
    count = 4 if single else 30
    imgs, masks = make_folders(tmp_path, count, (90, 70))
    common = ["-i" if single else "--input-dir", imgs, "--mask-dir", masks, "-m", model_file, *more]
    uninterrupted = run_script(script, *common, "--output-dir", tmp_path / "uninterrupted")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    expected = files(tmp_path / "uninterrupted")
    out = tmp_path / "out"
    arguments = [*common, "--output-dir", out, "--skip-existing"]
    for n_files in kills:
        with start_script(script, *arguments) as process:
            while len(list(out.glob("*.png"))) < n_files and process.poll() is None:
                time.sleep(0.001)
            process.kill()
        done = files(out)
        assert 0 < len([name for name in done if name.endswith(".png")]) < (11 if single else 1) * count
        assert all(content == expected[name] for name, content in done.items())
    last = run_script(script, *arguments)
    assert last.returncode == 0, last.stderr
    assert files(out) == expected
    assert last.stdout == uninterrupted.stdout
    again = run_script(script, *arguments)  # nothing remains to be done
    assert f"{count} of {count} images are already done" in again.stderr
    assert files(out) == expected


def test_resume_restores_missing_files_and_refuses_other_settings(tmp_path: Path, model_file: Path):
    imgs, _ = make_folders(tmp_path, 5, (50, 40))
    common = ["--input-dir", imgs, "--output-dir", tmp_path / "o", "-m", model_file, "--skip-existing"]
    assert run_script("predict_prob_tta.py", *common).returncode == 0
    before = files(tmp_path / "o")
    (tmp_path / "o" / "SKIN_003_OUT.png").unlink()
    (tmp_path / "o" / "summary.csv").unlink()
    partial = tmp_path / "o" / f".{uuid.uuid4().hex}.part"  # of a file that was being written
    partial.touch()
    with open(tmp_path / "o" / ".progress-0.jsonl", "a") as file:
        file.write('{"row": {"image": "SKIN_00')  # a line that a kill has cut off
    result = run_script("predict_prob_tta.py", *common)
    assert "4 of 5 images are already done" in result.stderr
    assert not partial.exists()
    assert files(tmp_path / "o") == before
    result = run_script("predict_prob_tta.py", *common, "--shrink", 0.7)
    assert_one_clear_line(result, "with shrink = 0.8, but this run has 0.7", "without skipping existing results")
    assert files(tmp_path / "o") == before
    result = run_script("predict_prob_tta.py", *common[:-1], "--shrink", 0.7)  # a new run
    assert result.returncode == 0
    assert files(tmp_path / "o") != before


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_folder(signum: int, code: int, tmp_path: Path, model_file: Path):
    imgs, _ = make_folders(tmp_path, 40, (300, 200))
    out = tmp_path / "o"
    flags = ["--input-dir", imgs, "-m", model_file, "--output-dir", out]
    with start_script("predict_prob_tta.py", *flags, fork=FORKS and signum == signal.SIGTERM) as process:
        while not list(out.glob("*.png")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signum)
        logged = process.stderr.read()
    assert process.returncode == code
    assert "Stopping after the current step" in logged
    assert "Traceback" not in logged
    recorded = [json.loads(line) for line in (out / ".progress-0.jsonl").read_text().splitlines() if '"row"' in line]
    recorded_files = sorted(file for entry in recorded for file in entry["files"])
    assert recorded_files == sorted(path.name for path in out.glob("*.png"))
    assert all(content.endswith(b"IEND\xaeB`\x82") for name, content in files(out).items() if name.endswith(".png"))
    assert [path.name for path in out.iterdir() if path.suffix not in (".png", ".jsonl")] == ["summary.csv"]
    assert {f"{Path(row['image']).stem}_OUT.png" for row in read_summary(out / "summary.csv")} == {*recorded_files}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_single_images_keep_their_summary(signum: int, code: int, tmp_path: Path, model_file: Path):
    imgs, _ = make_folders(tmp_path, 20, (60, 40))
    out = tmp_path / "o"
    flags = ["-i", imgs, "-m", model_file, "--mc", 2, "--output-dir", out]
    with start_script("predict_bayesian.py", *flags, fork=FORKS and signum == signal.SIGINT) as process:
        while not list(out.glob("*_figure.png")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signum)
        logged = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in logged
    done = {path.name.removesuffix("_figure.png") for path in out.glob("*_figure.png")}
    assert 0 < len(done) < 20
    assert {Path(row["image"]).stem for row in read_summary(out / "summary.csv")} == done
    assert {path.stem for path in out.glob("SKIN_???.png")} == done
    assert [path.name for path in out.glob(".*")] == [".progress-0.jsonl"]


def limited(limit: int, script: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a script, or `utils.NAME`, that cannot write files of more than `limit` bytes."""

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return (run_script if script.endswith(".py") else run_module)(script, *arguments, before=limit_files)


def test_training_on_a_full_disk_keeps_earlier_checkpoints(tmp_path: Path, lively_file: Path):
    imgs, masks = make_folders(tmp_path, 4, (40, 40))
    out = tmp_path / "checkpoints"
    common = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache", "--wandb", "disabled"]
    common += ["--checkpoint-dir", out, "--epochs", 2]
    result = run_script("train_bayesian.py", *common, "--load", lively_file)
    assert result.returncode == 0, result.stderr
    before = files(out)
    result = limited(100_000, "train_bayesian.py", *common, "--load", out / "best.pth")
    assert_one_clear_line(result, f"{out / 'checkpoint_epoch1.pth'}: File too large")
    assert files(out / "earlier-1") == before
    assert files(out).keys() == {f"earlier-1/{name}" for name in before}
    assert not list(out.rglob(".*"))


def test_samples_on_a_full_disk_are_not_left_in_part(tmp_path: Path):
    result = limited(10_000, "utils.sample_data", "--output-dir", tmp_path)
    assert_one_clear_line(result, f"{tmp_path / 'imgs' / 'SAMPLE_00.jpg'}: File too large")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_folder_on_a_full_disk_lists_what_is_missing(tmp_path: Path, model_file: Path):
    imgs, _ = make_folders(tmp_path, 2, (600, 500))
    (small, _) = make_folders(tmp_path / "small", 1, (40, 40))
    shutil.copy(small / "SKIN_000.jpg", imgs / "SMALL.jpg")
    result = limited(
        20_000,
        "predict_prob_direct.py",
        "--input-dir",
        imgs,
        "--output-dir",
        tmp_path / "o",
        "-m",
        model_file,
        "--save-npy",
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for i in range(2):
        assert f"SKIN_00{i}.jpg: its result could not be written (File too large)" in result.stderr
    assert (tmp_path / "o" / "SMALL_OUT_mean.npy").stat().st_size == 128 + 2 * 40 * 40 * 4
    assert not list((tmp_path / "o").glob("SKIN*.npy"))


def test_passes_on_a_full_disk_leave_no_array(tmp_path: Path, model_file: Path):
    (imgs, _), out = make_folders(tmp_path, 2, (300, 200)), tmp_path / "o"
    shutil.copy(make_folders(tmp_path / "small", 1, (40, 40))[0] / "SKIN_000.jpg", imgs / "SMALL.jpg")
    arguments = ("-i", imgs, "--output-dir", out, "--mc", 5, "--save-prob", "-m", model_file)
    result = limited(1_000_000, "predict_bayesian.py", *arguments)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for i in range(2):
        assert f"SKIN_00{i}.jpg: its result could not be written (File too large)" in result.stderr
    assert [path.name for path in out.glob("*.npy")] == ["SMALL_probs.npy"]
    assert [path.name for path in out.glob(".*")] == [".progress-0.jsonl"]

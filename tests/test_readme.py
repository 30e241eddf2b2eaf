"""Every command of the README, as it stands there, on small data."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ENVIRONMENT, ROOT, make_folders
from tests.test_download_isic import archives, serving

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
STEPS = [block.splitlines() for kind, block in BLOCKS if kind == "bash"]  # a block's commands build on each other
COMMANDS = [command for block in STEPS for command in block]


# A command that predicts with the shipped model.
PREDICTION = re.compile(r"^python predict\w*\.py (?!.*my_data)")


def test_the_commands_are_found():
    assert len(COMMANDS) >= 9
    assert COMMANDS[:2] == [
        "pip install -r requirements.txt && python predict_bayesian.py -i data/samples/imgs "
        "--mask-dir data/samples/masks --output-dir data/samples_uq --figure data/samples_uq/all.png",
        "pip install -r requirements-dev.txt && python -m pytest",
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """A folder as a user's clone is, with a small model and a few pictures in it."""
    project = tmp_path_factory.mktemp("project")
    for path in (*ROOT.glob("*.py"), *ROOT.glob("unet/*.py"), *ROOT.glob("utils/*.py")):
        (project / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, project / path.relative_to(ROOT))
    make_folders(project / "data", 4, (64, 48))
    imgs, masks = make_folders(project / "test", 1, (64, 48))
    for folder, ending in ((imgs, ".jpg"), (masks, "_Segmentation.png")):
        target = project / "data" / f"{folder.name}_test"
        shutil.move(folder, target)
        (target / f"SKIN_000{ending}").rename(target / f"ISIC_0000023{ending}")
    shutil.copy(model_file, project / "pretrained_model.pth")
    imgs, masks = make_folders(project / "my_data", 4, (64, 48))
    for path in masks.iterdir():  # three classes
        mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        mask[24:] *= 2
        Image.fromarray(mask).save(path)
    for i in (0, 2, 8):  # of the built-in samples those that the README names, made small
        for folder, ending in (("imgs", ".jpg"), ("masks", "_Segmentation.png")):
            (project / "data/samples" / folder).mkdir(parents=True, exist_ok=True)
            name = f"data/samples/{folder}/SAMPLE_{i:02d}{ending}"
            with Image.open(ROOT / name) as image:
                image.resize((64, 48), Image.Resampling.NEAREST).save(project / name)
    return project


def run(command: str, project: Path) -> None:
    """Run a command with this Python, its installation taken for done."""
    command = re.sub(r"^pip install -r \S+ && ", "", command)
    result = subprocess.run(
        command,
        shell=True,
        cwd=project,
        env={**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, f"{command}\n{result.stderr}"


@pytest.mark.parametrize("command", [c for block in STEPS if len(block) < 4 for c in block if PREDICTION.search(c)])
def test_predictions(command: str, project: Path):
    run(command, project)
    match = re.search(r"(?:--figure|--output-dir|-o) (\S+)", command)
    result = project / match[1]
    assert result.is_file() or (result / "ISIC_0000023_OUT.png").is_file()
    assert result.suffix == ".png" or "image,soft_dice_confidence" in (result / "summary.csv").read_text()


def test_the_built_in_pictures_in_one_command(project: Path):
    run(COMMANDS[0], project)
    results = project / "data" / "samples_uq"
    assert (results / "all.png").is_file()
    for i in (0, 2, 8):
        for ending in ("", "_prob", "_entropy", "_mutual_information", "_figure"):
            assert (results / f"SAMPLE_{i:02d}{ending}.png").is_file()


def test_own_data_of_three_classes(project: Path):
    (commands,) = [block for block in STEPS if "--classes 3" in block[0]]
    for command in commands:
        run(command, project)
    assert len(list((project / "my_data" / "probs").glob("*_OUT.png"))) == 4
    assert "dice_c2" in (project / "my_data" / "probs" / "metrics.csv").read_text()
    assert len(list((project / "my_data" / "uq").glob("SKIN_00?_prob_c2.png"))) == 4
    shutil.rmtree(project / "my_data" / "checkpoints")  # a checkpoint is 31 MB


def test_the_data_in_one_command(project: Path, tmp_path: Path):
    """From a server on this machine, since no test may reach for the network."""
    (command,) = [c for c in COMMANDS if "download_isic" in c]
    with serving(archives(900, 379)) as server:
        run(f"{command} --data-dir {tmp_path} --url {server.url}", project)
    assert len(list((tmp_path / "imgs").iterdir())) == 900


@pytest.mark.parametrize("commands", [block for block in STEPS if "utils.compare" in block[-1]])
def test_comparisons(commands: list[str], project: Path):
    for command in commands:
        run(command, project)
    folder = project / re.search(r"utils\.compare .*--output-dir (\S+)", commands[-1])[1]
    assert {path.name for path in folder.iterdir()} == {
        "comparison.md",
        "comparison.json",
        "reliability.png",
        "risk_coverage.png",
        "UQ_compare.png",
    }


@pytest.mark.parametrize("command", [c for c in COMMANDS if "utils.passes" in c])
def test_passes(command: str, project: Path):
    run(command, project)
    assert (project / re.search(r"--output-dir (\S+)", command)[1] / "passes.png").is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "utils.calibration" in c])
def test_calibration(command: str, project: Path):
    run(command, project)
    run("python predict_prob_direct.py --input-dir data/imgs_test --output-dir calibrated --calibrated", project)


def test_no_command_is_forgotten():
    modules = ("compare", "passes", "calibration", "download_isic")
    tested = ("predict", "train_bayesian.py", "pytest", *(f"utils.{module}" for module in modules))
    assert [c for c in COMMANDS if not any(word in c for word in tested)] == []


def test_trainings_in_their_order(project: Path):
    trainings = [c for c in COMMANDS if "train_bayesian.py" in c and "my_data" not in c]
    assert len(trainings) >= 3
    trained = shutil.copytree(project, project.parent / "trained")
    for command in trainings:
        run(command, trained)
        assert (trained / "checkpoints" / "best.pth").is_file()
    shutil.rmtree(trained)  # a checkpoint is 31 MB


@pytest.mark.parametrize("command", re.findall(r"torchrun .*?(\w+\.py .*)$", README, flags=re.MULTILINE))
def test_the_flags_of_several_processes(command: str):
    """They cannot be run here as they stand, with 8 GPUs; test_distributed.py runs the same with two processes."""
    script, *flags = shlex.split(command)
    module = importlib.import_module(script.removesuffix(".py"))
    module.get_args_parser().parse_args(flags)


def test_nothing_is_left_to_write():
    assert "TODO" not in README


def test_the_python_example(project: Path):
    (example,) = [block for kind, block in BLOCKS if kind == "python"]
    (project / "example.py").write_text(example, encoding="utf-8")
    run("python example.py", project)


def test_the_tree_is_the_one_in_the_readme():
    files = {path.name for folder in (ROOT, ROOT / "unet", ROOT / "utils") for path in folder.glob("*.py")}
    listed = set(re.findall(r"^ *(\w+\.py) ", README, flags=re.MULTILINE))
    assert files - {"__init__.py"} == listed


def test_the_packages_are_the_known_ones():
    names = [re.split(r"[<>=~]", line)[0] for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert names == ["torch", "torchvision", "numpy", "Pillow", "tqdm", "wandb", "matplotlib"]

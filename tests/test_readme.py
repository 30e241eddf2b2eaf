"""Every command of the README, as it stands there, on small data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT, make_folders

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]


def test_the_commands_are_found():
    assert len(COMMANDS) >= 9
    assert COMMANDS[:2] == [
        "pip install -r requirements.txt && python train_bayesian.py --amp",
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


@pytest.mark.parametrize("command", [c for c in COMMANDS if "predict" in c])
def test_predictions(command: str, project: Path):
    run(command, project)
    match = re.search(r"(?:--output-dir|-o) (\S+)", command)
    result = project / match[1]
    assert result.is_file() or (result / "ISIC_0000023_OUT.png").is_file()


def test_trainings_in_their_order(project: Path):
    trainings = [c for c in COMMANDS if "train_bayesian.py" in c]
    assert len(trainings) >= 4
    trained = shutil.copytree(project, project.parent / "trained")
    for command in trainings:
        run(command, trained)
        assert (trained / "checkpoints" / "best.pth").is_file()
    shutil.rmtree(trained)  # a checkpoint is 31 MB


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

"""The documents: every command as it stands there, on small data; links; the tree of files."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ENVIRONMENT, FORKS, ROOT, make_folders, run_module, run_script
from tests.fresh_processes import run_fresh
from utils.checkpoint import load_model, save_checkpoint

FOLDERS = (".", "data", "diagram/isic2016", "utils", "tests/benchmarks")
DOCUMENTS = {path: path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).glob("README.md")}
README, ARCHITECTURE = DOCUMENTS[ROOT / "README.md"], DOCUMENTS[ROOT / "utils" / "README.md"]


def code_blocks(language: str) -> list[str]:
    """The contents of all fenced code blocks of that language, document by document."""
    pattern = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", flags=re.MULTILINE)
    blocks = [block for text in DOCUMENTS.values() for block in pattern.findall(text)]
    return [content for of_block, content in blocks if of_block == language]


STEPS = [block.splitlines() for block in code_blocks("bash")]  # a block's commands build on each other
COMMANDS = [command for block in STEPS for command in block]

# Each command belongs to one test.
QUICK_START = COMMANDS[:2]
OWN_DATA = [block for block in STEPS if "--classes 3" in block[0]]
COMPARISONS = [block for block in STEPS if "utils.compare" in block[-1]]
REVIEWS = [block for block in STEPS if "utils.review" in block[-1]]
GUARANTEES = [block for block in STEPS if re.match(r"python predict.* --guarantee ", block[-1])]
IN_BLOCKS = (*OWN_DATA, *COMPARISONS, *REVIEWS, *GUARANTEES)
REMAINING = [c for block in STEPS if block not in IN_BLOCKS for c in block if c not in QUICK_START]
PREDICTIONS = [c for c in REMAINING if re.match(r"python predict\w*\.py ", c)]
TRAININGS = [c for c in REMAINING if "train_bayesian.py" in c]
DOWNLOADS, PASSES, SHIFTS, CALIBRATIONS, SAMPLES = (
    [c for c in REMAINING if c.startswith(f"python -m utils.{module}")]
    for module in ("download_isic", "passes", "shift", "calibration", "sample_data")
)


def test_no_command_is_forgotten():
    of_blocks = [c for block in IN_BLOCKS for c in block]
    single = [QUICK_START, PREDICTIONS, TRAININGS, DOWNLOADS, PASSES, SHIFTS, CALIBRATIONS, SAMPLES]
    assert sorted([*of_blocks, *(c for commands in single for c in commands)]) == sorted(COMMANDS)
    assert DOWNLOADS == ["python -m utils.download_isic"]  # see test_download_isic.py


def test_quick_start():
    assert len(COMMANDS) >= 9
    assert QUICK_START == [
        "pip install -r requirements.txt && python predict_bayesian.py -i data/samples/imgs "
        "--mask-dir data/samples/masks --output-dir data/samples_uq --figure data/samples_uq/all.png --review",
        "pip install -r requirements-dev.txt && python -m pytest",
    ]
    assert all(command in README for command in QUICK_START)


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """A folder like a user's clone, with a small model and a few small images."""
    project = tmp_path_factory.mktemp("project")
    for path in source_files():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, project / path)
    make_folders(project / "data", 4, (64, 48))
    imgs, masks = make_folders(project / "test", 1, (64, 48))
    for folder, suffix in ((imgs, ".jpg"), (masks, "_Segmentation.png")):
        target = project / "data" / f"{folder.name}_test"
        shutil.move(folder, target)
        (target / f"SKIN_000{suffix}").rename(target / f"ISIC_0000023{suffix}")
    shutil.copy(model_file, project / "pretrained_model.pth")
    make_folders(project / "clinic", 4, (64, 48))
    shutil.copytree(project / "data" / "imgs_test", project / "clinic" / "new")
    (project / "checkpoints").mkdir()
    shutil.copy(model_file, project / "checkpoints/best.pth")
    member = load_model(model_file)
    for seed in range(5):  # the members of an ensemble, which differ a little
        member.network.outc.conv.bias.data.add_(0.01)
        save_checkpoint(project / f"checkpoints/seed{seed}/best.pth", member)
    imgs, masks = make_folders(project / "my_data", 4, (64, 48))
    for path in masks.iterdir():  # three classes
        mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        mask[24:] *= 2
        Image.fromarray(mask).save(path)
    for i in (0, 2, 8):  # the built-in images that README.md names, resized
        for folder, suffix in (("imgs", ".jpg"), ("masks", "_Segmentation.png")):
            (project / "data/samples" / folder).mkdir(parents=True, exist_ok=True)
            name = f"data/samples/{folder}/SAMPLE_{i:02d}{suffix}"
            with Image.open(ROOT / name) as image:
                image.resize((64, 48), Image.Resampling.NEAREST).save(project / name)
    return project


def source_files() -> list[Path]:
    """The modules, scripts and page templates of the project, relative to its root."""
    paths = (*ROOT.glob("*.py"), *ROOT.glob("unet/**/*.py"), *ROOT.glob("utils/**/*.py"))
    paths = (*paths, *ROOT.glob("utils/**/template/*"))
    return [path.relative_to(ROOT) for path in paths]


def program(command: str) -> str:
    """The script or module that a command runs."""
    return re.search(r"python (?:-m )?(\S+)", command)[1]


# The first command of each program imports the project, the others have it imported, which saves seconds.
FIRST = {program(command): command for command in reversed(COMMANDS) if command != QUICK_START[1]}


def run(command: str, project: Path, *more: str) -> str:
    """Run a command, with more flags, with this Python, without installing anything; returns its standard output."""
    _, *words = [*shlex.split(re.sub(r"^pip install -r \S+ && ", "", command)), *more]
    name = program(command)
    if not FORKS or command == QUICK_START[0]:
        result = subprocess.run(
            shlex.join(["python", *words]),
            shell=True,
            cwd=project,
            env={**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=400,
        )
    elif FIRST.get(name, command) == command:
        result = run_fresh(words, project, ENVIRONMENT)
    elif words[0] == "-m":
        result = run_module(*words[1:], cwd=project)
    else:
        result = run_script(project / name, *words[1:], cwd=project)
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    return result.stdout


def test_built_in_images(project: Path):
    run(QUICK_START[0], project)
    results = project / "data" / "samples_uq"
    assert (results / "all.png").is_file()
    assert '"SAMPLE_08.jpg"' in (results / "review.html").read_text()
    for i in (0, 2, 8):
        for suffix in ("", "_prob", "_entropy", "_mutual_information", "_figure"):
            assert (results / f"SAMPLE_{i:02d}{suffix}.png").is_file()


@pytest.mark.parametrize("command", PREDICTIONS)
def test_predictions(command: str, project: Path):
    run(command, project)
    match = re.search(r"(?:--figure|--output-dir|-o) (\S+)", command)
    result = project / match[1]
    assert result.is_file() or (result / "ISIC_0000023_OUT.png").is_file()
    assert result.suffix == ".png" or "image,soft_dice_confidence" in (result / "summary.csv").read_text()


def test_own_data_of_three_classes(project: Path):
    (commands,) = OWN_DATA
    for command in commands:
        run(command, project, *(SMALL_TRAINING if command == commands[0] else ()))
    assert len(list((project / "my_data" / "probs").glob("*_OUT.png"))) == 4
    assert "dice_c2" in (project / "my_data" / "probs" / "metrics.csv").read_text()
    assert len(list((project / "my_data" / "uq").glob("SKIN_00?_prob_c2.png"))) == 4
    shutil.rmtree(project / "my_data" / "checkpoints")  # a checkpoint is 31 MB


def test_synthetic_images(project: Path):
    (command,) = SAMPLES
    run(command, project)
    folder = project / re.search(r"--output-dir (\S+)", command)[1]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        *(f"imgs/SAMPLE_{i:02d}.jpg" for i in range(2)),
        *(f"masks/SAMPLE_{i:02d}_Segmentation.png" for i in range(2)),
    ]


@pytest.mark.parametrize("commands", COMPARISONS)
def test_comparisons(commands: list[str], project: Path):
    folder = project / re.search(r"utils\.compare .*--output-dir (\S+)", commands[-1])[1]
    shutil.rmtree(folder, ignore_errors=True)  # the results of other commands
    for command in commands:
        run(command, project)
    assert {path.name for path in folder.iterdir()} == {
        "comparison.md",
        "comparison.json",
        "reliability.png",
        "risk_coverage.png",
        "UQ_compare.png",
    }


@pytest.mark.parametrize("commands", REVIEWS)
def test_review(commands: list[str], project: Path):
    for command in commands:
        run(command, project)
    for method in ("direct", "bayesian", "tta"):
        assert (project / "data" / f"probs_{method}" / "ISIC_0000023_OUT.png").is_file()
        assert "image,soft_dice_confidence" in (project / "data" / f"probs_{method}" / "summary.csv").read_text()
    page = (project / "data" / "probs_direct" / "review.html").read_text()
    for title in ("softmax", "MC dropout, 50 passes", "test-time augmentation"):
        assert f'"{title}"' in page


@pytest.fixture(scope="module")
def guaranteeing(project: Path) -> tuple[str, ...]:
    """The model of the recipe, which comes first, and the level that four images can give."""
    run(GUARANTEES[0][0], project)
    return "-m", str(project / "clinic" / "model.pth"), "--guarantee", "0.8"


@pytest.mark.parametrize("commands", GUARANTEES)
def test_guarantees(commands: list[str], project: Path, guaranteeing: tuple[str, ...]):
    for command in commands:
        if command != GUARANTEES[0][0]:
            run(command, project, *guaranteeing)
            folder = project / re.search(r"--output-dir (\S+)", command)[1]
            assert {path.name[-9:] for path in folder.glob("ISIC_0000023*er.png")} == {"outer.png", "inner.png"}


@pytest.mark.parametrize("command", PASSES)
def test_passes(command: str, project: Path):
    run(command, project)
    assert (project / re.search(r"--output-dir (\S+)", command)[1] / "passes.png").is_file()


@pytest.mark.parametrize("command", SHIFTS)
def test_shift(command: str, project: Path, guaranteeing: tuple[str, ...]):
    """In one strength of five."""
    table = run(command, project, "--strengths", "5", *guaranteeing)
    folder = project / re.search(r"--output-dir (\S+)", command)[1]
    assert table.strip() in (folder / "shift.md").read_text()
    assert (folder / "shift.png").is_file()


@pytest.mark.parametrize("command", CALIBRATIONS)
def test_calibration(command: str, project: Path):
    run(command, project)
    (model,) = re.findall(r"--output (\S+)", command) or re.findall(r"-m (\S+\.pth)", command)
    flags = ("-m", model, "--output-dir", "calibrated", "--calibrated")
    run("python predict_prob_direct.py --input-dir data/imgs_test", project, *flags)


SMALL_TRAINING = ("--epochs", "1", "--newW", "32", "--newH", "32")


def test_trainings_in_their_order(project: Path):
    assert len(TRAININGS) >= 3
    trained = shutil.copytree(project, project.parent / "trained")
    for command in TRAININGS:
        run(command, trained, *SMALL_TRAINING)
        assert (trained / "checkpoints" / "best.pth").is_file()
    shutil.rmtree(trained)  # a checkpoint is 31 MB


def test_training_of_the_shipped_model(project: Path):
    """Its commands, but for one epoch of a small network."""
    (block,) = [block for block in code_blocks("") if "half()" in block]
    trained = shutil.copytree(project, project.parent / "shipped")
    training, *others = block.splitlines()
    run(training, trained, *SMALL_TRAINING, "--load", "pretrained_model.pth")
    for command in others:
        run(command, trained)
    assert (trained / "pretrained_model.pth").stat().st_mtime > (project / "pretrained_model.pth").stat().st_mtime
    shutil.rmtree(trained)


TORCHRUN = re.compile(r"torchrun .*?(\w+\.py .*)$", flags=re.MULTILINE)


@pytest.mark.parametrize("command", [command for text in DOCUMENTS.values() for command in TORCHRUN.findall(text)])
def test_flags_of_several_processes(command: str):
    """They cannot be run here, with 8 GPUs; test_distributed.py runs the same with two processes."""
    script, *flags = shlex.split(command)
    module = importlib.import_module(script.removesuffix(".py"))
    module.get_args_parser().parse_args(flags)


def test_several_processes_are_documented():
    assert TORCHRUN.search(README)
    assert TORCHRUN.search(ARCHITECTURE)


def test_python_example(project: Path):
    (example,) = code_blocks("python")
    assert example in ARCHITECTURE
    (project / "example.py").write_text(example, encoding="utf-8")
    assert "[2, 48, 64]" in run("python example.py", project)


# -- the text ----------------------------------------------------------------------------------------------------------


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def relative_links() -> Iterator[tuple[Path, str]]:
    """The links and images of each document, other than those to the web."""
    for document, text in DOCUMENTS.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("https://", "http://")):
                yield document.relative_to(ROOT), link


@pytest.mark.parametrize(("document", "link"), list(relative_links()), ids=str)
def test_relative_links(document: Path, link: str):
    name, _, anchor = link.partition("#")
    target = (ROOT / document.parent / name).resolve() if name else ROOT / document
    assert target.exists()
    assert target.is_relative_to(ROOT)
    assert not anchor or anchor in headings(target.read_text(encoding="utf-8"))


def test_links_are_found():
    assert {document.as_posix() for document, _ in relative_links()} >= {"README.md", "diagram/isic2016/README.md"}


def test_length():
    assert len(README.splitlines()) <= 220


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_left_to_write(document: Path):
    assert "TODO" not in DOCUMENTS[document]


def test_tree():
    files = {path.as_posix() for path in source_files() if path.name != "__init__.py"}
    (tree,) = [block for block in code_blocks("") if "unet/" in block]
    listed, folders = [], []
    for line in tree.splitlines():
        indentation, name = re.match(r"( *)(\S+)", line).groups()
        del folders[len(indentation) // 2 :]
        if name.endswith("/"):
            folders.append(name)
        else:
            listed.append("".join(folders) + name)
    assert sorted(listed) == sorted(files)


def test_requirements():
    names = [re.split(r"[<>=~]", line)[0] for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert names == ["torch", "torchvision", "numpy", "Pillow", "tqdm", "wandb", "matplotlib"]

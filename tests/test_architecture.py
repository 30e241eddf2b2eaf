"""The house: who may import whom, how large a room may be, and that every name stands for one thing."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = sorted([*ROOT.glob("*.py"), *(ROOT / "unet").rglob("*.py"), *(ROOT / "utils").rglob("*.py")])
COMMANDS = {"calibration", "compare", "download_isic", "passes", "review", "sample_data", "shift"}

# Each room may import from itself and from the rooms that are listed here.
LAYERS: dict[str, set[str]] = {
    "unet": set(),
    "runtime": set(),
    "metrics": set(),
    "dice_score": set(),
    "models": {"unet", "runtime", "metrics", "data"},
    "checkpoint": {"unet", "runtime", "metrics", "models"},
    "data": {"runtime"},
    "data_loading": {"data", "runtime"},
    "inference": {"unet", "runtime", "metrics", "checkpoint", "data"},
    "figures": {"runtime", "metrics", "inference", "data"},
    "training": {"unet", "runtime", "metrics", "dice_score", "checkpoint", "data", "data_loading", "inference"},
    "pipeline": {"runtime", "metrics", "checkpoint", "data", "inference"},
    "review_page": {"runtime", "metrics", "data", "pipeline", "figures"},
    "argument_types": {"data"},
    "pairing_arguments": {"data"},
    "value_arguments": {"argument_types", "data"},
    "result_arguments": {"argument_types"},
    "arguments": {
        *("data", "inference", "training"),
        *("argument_types", "pairing_arguments", "value_arguments", "result_arguments"),
    },
    "model_flags": {"unet", "runtime", "models", "checkpoint", "data", "inference", "arguments"},
    "cli": {"runtime", "data", "pipeline", "review_page", "arguments", "model_flags"},
}
EVERYTHING = {*LAYERS}

MAX_ROOM, MAX_FUNCTION, MAX_ARGUMENTS = 300, 60, 7
REPEATED = {"main", "get_args_parser"}  # what every script and command has


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """utils.data.images is in the room data, unet.unet_parts in unet, a script or a command in its own."""
    parts = module.split(".")
    return parts[1] if parts[0] == "utils" and len(parts) > 1 else parts[0]


KNOW_FLAGS = {"arguments", "pairing_arguments", "value_arguments", "result_arguments", "model_flags", "cli"}
LIBRARY = [path for path in MODULES if room_of(name_of(path)) in {*LAYERS} - KNOW_FLAGS]


def imports(path: Path) -> list[tuple[str, bool]]:
    """Names of imported modules, and whether the import is at the top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                inner = ROOT / node.module.replace(".", "/") / alias.name
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                found.append((f"{node.module}.{alias.name}" if is_module else node.module, id(node) in top))
    return found


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_scripts_and_rooms_are_the_known_ones():
    assert SCRIPTS == [
        "predict",
        "predict_bayesian",
        "predict_prob_bayesian",
        "predict_prob_direct",
        "predict_prob_tta",
        "train_bayesian",
    ]
    rooms = {room_of(name_of(path)) for path in MODULES} - {"utils"}
    assert rooms == {*SCRIPTS, *COMMANDS, *LAYERS}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path):
    room = room_of(name_of(path))
    allowed = LAYERS.get(room, EVERYTHING) | {room, "utils"}  # scripts and commands may import every layer
    for module, at_top in imports(path):
        package = module.split(".")[0]
        assert package not in {*SCRIPTS, "tests"}, f"{path} imports {module}"
        if package in ("unet", "utils"):
            assert room_of(module) in allowed, f"{path} imports {module}"
        if package == "matplotlib":
            assert room == "figures"
            assert not at_top
        if package == "wandb":
            assert path.name == "tracking.py"
            assert not at_top


def test_no_import_cycles():
    graph = {name_of(path): {m for m, _ in imports(path) if m.startswith(("utils", "unet"))} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"cycle: {above} -> {module}"
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_and_functions_are_small(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < MAX_ROOM
    for function in functions(path):
        lines = function.end_lineno - function.lineno + 1
        assert lines < MAX_FUNCTION, f"{function.name} has {lines} lines"
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
        assert len(names) <= MAX_ARGUMENTS, f"{function.name} has {len(names)} arguments"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=name_of)
def test_the_first_line_names_the_job(path: Path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))


def test_every_name_stands_for_one_thing():
    """Top-level functions, classes and constants, with and without capitals; file names, too."""
    places = defaultdict(set)
    for path in MODULES:
        if path.name != "__init__.py":
            places[f"{path.name}"].add(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            else:
                continue
            for name in names:
                if name not in REPEATED and name != "logger":
                    places[name.lower()].add((path, name))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_only_the_command_line_speaks_of_flags(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
    ]
    assert [text for text in texts if re.search(r"--[a-z]", text)] == []


def test_scripts_start_without_what_they_may_not_need():
    code = f"""
import sys
for script in {SCRIPTS}:
    __import__(script)
    print(*[(script, name) for name in ("matplotlib", "wandb", "torchvision") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []

"""Who may import whom: scripts -> utils -> unet -> torch, without circles, matplotlib and wandb only where used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("utils/*.py")) + sorted(ROOT.glob("unet/*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Names of imported modules, and whether the import stands at the top level."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                inner = ROOT / node.module.replace(".", "/") / f"{alias.name}.py"
                found.append((f"{node.module}.{alias.name}" if inner.exists() else node.module, id(node) in top))
    return found


def test_the_scripts_are_the_known_ones():
    assert SCRIPTS == [
        "predict",
        "predict_bayesian",
        "predict_prob_bayesian",
        "predict_prob_direct",
        "predict_prob_tta",
        "train_bayesian",
    ]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path):
    for module, at_top in imports(path):
        package = module.split(".")[0]
        assert package not in SCRIPTS, f"{path} imports a script"
        assert package != "tests"
        if path.parent.name == "unet":
            assert package != "utils"
        if package == "matplotlib":
            assert path.name == "figures.py"
            assert not at_top
        if package == "wandb":
            assert path.name == "tracking.py"
            assert not at_top


def test_there_is_no_circle():
    graph = {name_of(path): {m for m, _ in imports(path) if m.startswith(("utils", "unet"))} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"circle: {above} -> {module}"
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_without_what_it_may_not_need(script: str):
    code = f"import sys, {script}; print(*[m for m in ('matplotlib', 'wandb', 'torchvision') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""

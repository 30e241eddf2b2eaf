"""Figures in any environment: backends that matplotlib does not know, file names of any language."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.conftest import ROOT
from tests.test_figures import random_row
from utils.figures.environment import drawable, font_families, without_formulas
from utils.figures.predictions import draw_predictions, show_predictions

NAMES = ["a$b$c.jpg", "x$\\frac{$.jpg", "皮膚病変.jpg", "피부.jpg", "caf\udce9.jpg", "two\nlines.jpg", "🔬.jpg"]


def test_names_are_drawn_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_predictions([random_row(caption=name) for name in NAMES])
        FigureCanvasAgg(figure).draw()
    drawn = [text.get_text() for text in figure.texts]
    assert {"a$b$c.jpg", "x$\\frac{$.jpg", "caf\N{REPLACEMENT CHARACTER}.jpg"} <= set(drawn)


def test_characters_that_another_font_has():
    other = "\u29c5"  # in STIXGeneral, which comes with matplotlib, not in the default font
    assert drawable(f"a {other}\udcff") == f"a {other}\N{REPLACEMENT CHARACTER}"
    assert font_families("a") == ["DejaVu Sans"]
    assert len(font_families(other)) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_predictions([random_row(caption=other)])
        FigureCanvasAgg(figure).draw()


def test_labels_without_formulas():
    for label in ("MC (out$a$b)", "$", r"\frac$x$"):
        figure = Figure()
        drawn, expected = figure.text(0, 0, without_formulas(label)), figure.text(0, 0, label, parse_math=False)
        renderer = FigureCanvasAgg(figure).get_renderer()
        assert drawn.get_window_extent(renderer).width == expected.get_window_extent(renderer).width


FIGURE = """
import os, sys
from pathlib import Path
import numpy as np
from utils.figures.curves import draw_passes
from utils.figures.grid import save_figure
save_figure(draw_passes({"ECE": ([1, 2], [0.1, 0.2])}), Path(sys.argv[1]))
import matplotlib
print(matplotlib.rcParams["text.usetex"], os.environ["MPLBACKEND"])
"""


def test_backend_and_settings_of_the_environment_are_not_used_for_files(tmp_path: Path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    variables = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(tmp_path)}
    variables |= {"MPLCONFIGDIR": "/dev/null/nowhere"}  # about which matplotlib would warn
    command = [sys.executable, "-c", FIGURE, str(tmp_path / "f.png")]
    environment = os.environ | variables
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert (tmp_path / "f.png").is_file()
    assert result.stdout.split() == ["False", variables["MPLBACKEND"]]
    assert result.stderr == ""


def test_window_of_an_unknown_backend(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("MPLBACKEND", "module://nonsense")
    show_predictions([random_row()])
    assert "The figure cannot be shown (" in caplog.text

"""Small multiples: a panel for each row and column, with common scales within a column."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from utils.figures.environment import drawable, font_families, load_matplotlib, without_formulas
from utils.figures.palette import CURVE_STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches; a figure of 9 inches is shown 900 pixels wide.
_WIDTH, _ROW, _TITLES, _BOTTOM, _RIGHT, _TOP = 9.0, 0.68, 0.62, 0.42, 0.08, 0.06
_ROW_LABELS = 1.38  # for the names of the rows, and the numbers of the first column
_TEXT = 9  # points
_COLUMN_LETTERS = 100  # of all titles of the columns in a line
_LINE, _LINE_LENGTH = 0.22, 100  # of the legend: inches, characters

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # x and y of each line, by its name


def draw_small_multiples(panels: Mapping[str, Mapping[str, Curves]], x_label: str) -> Figure:
    """Lines in panels.

    Args:
        panels: by the names of the rows and of the columns the curves of a panel; all rows have the same columns.
        x_label: what the horizontal axes show.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    columns = list(next(iter(panels.values())))
    names = list(next(iter(panels.values()))[columns[0]])
    per_line = len(names) if sum(map(len, names)) <= _LINE_LENGTH else 1
    top = _TOP + _TITLES + _LINE * math.ceil(len(names) / per_line)
    height = top + _ROW * len(panels) + _BOTTOM
    figure = Figure(figsize=(_WIDTH, height))
    edges = {"left": _ROW_LABELS / _WIDTH, "right": 1 - _RIGHT / _WIDTH, "top": 1 - top / height}
    edges |= {"bottom": _BOTTOM / height, "wspace": 0.46, "hspace": 0.2}
    axes = figure.subplots(len(panels), len(columns), sharex=True, sharey="col", squeeze=False, gridspec_kw=edges)
    for row, (name, by_column) in zip(axes, panels.items(), strict=True):
        label = textwrap.fill(name, 14, break_long_words=False)
        row[0].text(-0.42, 0.5, label, transform=row[0].transAxes, ha="right", va="center", fontsize=_TEXT)
        for ax, curves in zip(row, by_column.values(), strict=True):
            _draw_panel(ax, curves)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(textwrap.fill(column, _COLUMN_LETTERS // len(columns)), fontsize=_TEXT, pad=5)
    middle = (_ROW_LABELS + _WIDTH - _RIGHT) / 2 / _WIDTH
    figure.text(middle, 0.06 / height, x_label, ha="center", va="bottom", fontsize=_TEXT)
    prop = {"size": _TEXT, "family": font_families("".join(names))}
    style = {"ncols": per_line, "frameon": False, "borderaxespad": 0.1, "borderpad": 0.2, "prop": prop}
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(middle, 1 - _TOP / height), **style
    )
    return figure


def _draw_panel(ax: Axes, curves: Curves) -> None:
    for style, (name, (x, y)) in zip(itertools.cycle(CURVE_STYLES), curves.items(), strict=False):
        ax.plot(x, y, label=without_formulas(drawable(name)), linewidth=1.3, markersize=3, **style)
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.tick_params(labelsize=_TEXT - 2, length=2, pad=1.5, width=0.6)
    ax.locator_params(axis="y", nbins=3)
    ax.ticklabel_format(axis="y", useOffset=False)  # as many decimals at all ticks
    ax.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_linewidth(0.6)

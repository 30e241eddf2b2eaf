"""Image panels in rows and columns, laid out in inches: titles on top, captions below each row, keys at the bottom."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from utils.figures.environment import drawable, font_families, load_matplotlib
from utils.runtime.atomic_files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches, in steps of 0.05, so that panels begin and end at whole pixels.
_STEP = 0.05
_MAX_PANEL, _MAX_WIDTH = 1.9, 11.9  # widths of a panel and of a figure
_GAP, _MARGIN = 0.05, 0.1  # space between panels, space at the edges
_MIN_ASPECT, _MAX_ASPECT = 0.5, 2.0  # height / width of a panel
_MAX_ELONGATION = 32  # of an image within its panel: more would be thinner than a pixel
_LINE, _COLOUR_BARS = 0.2, 0.5  # height of a line of text, of the colour bars with their labels
_TITLE_SIZE, _TEXT_SIZE = 11, 10  # points: 6 to 7 when a figure is printed across a page
_FULL_SIZE_PANEL = 1.25  # inches: in narrower panels, titles and colour bars have smaller text
_LEGEND_COLUMNS = 2
_HINTING = 1.08  # by which text on a screen is wider than its outlines

_COLOUR_MAPS = {"probability": ("viridis", "Probability"), "entropy": ("inferno", "Entropy (nats)")}


@dataclass(frozen=True)
class Column:
    """A column of panels.

    Attributes:
        title: stands above it.
        kind: "image" for RGB images, "probability" or "entropy" for maps with a colour bar.
        heading: stands above the titles of all adjacent columns with the same heading.
        legend: colours and labels below the column; colours are red, green and blue, 0 to 255.
    """

    title: str
    kind: str = "image"
    heading: str = ""
    legend: tuple[tuple[tuple[int, int, int], str], ...] = ()


def draw_grid(
    columns: Sequence[Column],
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str],
    max_entropy: float = math.log(2),
    new_figure: Callable[..., Figure] | None = None,
) -> Figure:
    """A figure of panels.

    Args:
        columns: from left to right.
        rows: for each row the panels, (h, w, 3) uint8 images or (h, w) maps, one for each column.
        captions: of the rows.
        max_entropy: the brightest entropy, in nats.
        new_figure: makes the figure; `matplotlib.figure.Figure` if None.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    layout = _Layout(columns, rows, captions)
    limits = {"probability": 1.0, "entropy": max_entropy}
    figure = (new_figure or Figure)(figsize=(layout.width, layout.height))
    _draw_titles(figure, layout, columns)
    for panels, caption, top, height in zip(rows, layout.captions, layout.tops, layout.heights, strict=True):
        for i, (column, values) in enumerate(zip(columns, panels, strict=True)):
            axes = figure.add_axes(layout.box(layout.left(i), top, layout.panel, height))
            shown: dict[str, Any] = {}
            if column.kind in _COLOUR_MAPS:
                shown = {"cmap": _COLOUR_MAPS[column.kind][0], "vmin": 0, "vmax": limits[column.kind]}
            aspect = values.shape[0] / values.shape[1]
            axes.imshow(values, aspect=np.clip(aspect, 1 / _MAX_ELONGATION, _MAX_ELONGATION) / aspect, **shown)
            axes.set_axis_off()
        position = layout.point(_MARGIN, top + height + 0.04)
        style = {"fontsize": _TEXT_SIZE, "family": font_families(caption), "parse_math": False}
        figure.text(*position, caption, va="top", **style)
    for i, column in enumerate(columns):
        if column.kind in _COLOUR_MAPS and column.kind not in {earlier.kind for earlier in columns[:i]}:
            _draw_colour_bar(figure, layout, i, column.kind, limits[column.kind])
        if column.legend:
            _draw_legend(figure, layout, i, column.legend)
    return figure


class _Layout:
    """Where everything is, in inches from the upper left corner.

    Attributes:
        width, height: of the figure.
        panel: width of a panel.
        scale: of the text that belongs to a column.
        headings: for each group of columns its heading, wrapped, and its first and last column.
        tops, heights: of the panels of each row.
        captions: of the rows, wrapped.
        bottom: where the colour bars and legends begin.
    """

    def __init__(
        self, columns: Sequence[Column], rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str]
    ) -> None:
        n = len(columns)
        self.panel = min(_MAX_PANEL, _STEP * int((_MAX_WIDTH - 2 * _MARGIN - (n - 1) * _GAP) / n / _STEP))
        self.scale = min(1.0, self.panel / _FULL_SIZE_PANEL)
        self.width = 2 * _MARGIN + n * self.panel + (n - 1) * _GAP
        self.headings = self._wrap_headings(columns)
        self.captions = [_wrap(text, self.width - 2 * _MARGIN, _TEXT_SIZE) for text in captions]
        self.titles = _MARGIN + _LINE * max(_lines(heading) for heading, _, _ in self.headings) + _GAP
        top = self.titles + _LINE + _GAP
        self.tops, self.heights = [], []
        for panels, caption in zip(rows, self.captions, strict=True):
            height, width = panels[0].shape[:2]
            aspect = np.clip(height / width, _MIN_ASPECT, _MAX_ASPECT)
            self.tops.append(top)
            self.heights.append(_STEP * math.ceil(self.panel * aspect / _STEP))
            top += self.heights[-1] + _LINE * _lines(caption) + 2 * _GAP
        self.bottom = top
        legend_lines = max(math.ceil(len(column.legend) / _LEGEND_COLUMNS) for column in columns)
        self.height = top + max(_COLOUR_BARS, _LINE * legend_lines) + _MARGIN

    def _wrap_headings(self, columns: Sequence[Column]) -> list[tuple[str, int, int]]:
        headings = []
        for heading, group in groupby(range(len(columns)), key=lambda i: columns[i].heading):
            first, *others = group
            last = others[-1] if others else first
            width = self.left(last) + self.panel - self.left(first)
            headings.append((_wrap(heading, width, _TITLE_SIZE, bold=True), first, last))
        return headings

    def left(self, i: int) -> float:
        """The left edge of a column."""
        return _MARGIN + i * (self.panel + _GAP)

    def point(self, left: float, top: float) -> tuple[float, float]:
        """A point in figure coordinates."""
        return left / self.width, 1 - top / self.height

    def box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A box in figure coordinates: left, bottom, width, height."""
        return left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _wrap(text: str, width: float, size: float, bold: bool = False) -> str:
    """Break a text, as it can be drawn, into lines of at most that many inches, at spaces or within long words."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    text = drawable(text)
    font = FontProperties(size=size, weight="bold" if bold else "normal", family=font_families(text))

    def is_too_wide(line: str) -> bool:
        points, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
        return points * _HINTING > 72 * width

    lines = [""]
    for word in text.split(" "):
        if lines[-1] and not is_too_wide(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
            continue
        while is_too_wide(word):
            length = max(1, bisect_left(range(1, len(word)), True, key=lambda n, word=word: is_too_wide(word[:n])))
            lines.append(word[:length])
            word = word[length:]
        lines.append(word)
    return "\n".join(line for line in lines if line)


def _draw_titles(figure: Figure, layout: _Layout, columns: Sequence[Column]) -> None:
    """A heading over each group of columns, with a line below it, and a title over each column."""
    from matplotlib.lines import Line2D

    for heading, first, last in layout.headings:
        if heading:
            left, right = layout.left(first), layout.left(last) + layout.panel
            position = layout.point((left + right) / 2, layout.titles - _GAP)
            style = {"fontsize": _TITLE_SIZE, "weight": "bold", "family": font_families(heading), "parse_math": False}
            figure.text(*position, heading, ha="center", va="bottom", **style)
            (x0, y), (x1, _) = layout.point(left, layout.titles), layout.point(right, layout.titles)
            figure.add_artist(Line2D([x0, x1], [y, y], color="0.3", linewidth=0.8))
    for i, column in enumerate(columns):
        position = layout.point(layout.left(i) + layout.panel / 2, layout.titles + (_LINE + _GAP) / 2)
        figure.text(*position, column.title, fontsize=_TITLE_SIZE * layout.scale, ha="center", va="center")


def _draw_colour_bar(figure: Figure, layout: _Layout, i: int, kind: str, limit: float) -> None:
    """The colour bar of a kind of map, below a column."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    cmap, label = _COLOUR_MAPS[kind]
    box = layout.box(layout.left(i) + 0.12, layout.bottom + 0.04, layout.panel - 0.3, 0.11)
    mappable = ScalarMappable(Normalize(0, limit), cmap)
    bar = figure.colorbar(mappable, cax=figure.add_axes(box), orientation="horizontal")
    bar.set_ticks([0, limit / 2, limit], labels=["0", f"{limit / 2:.2g}", f"{limit:.2g}"])
    bar.ax.tick_params(length=2, pad=1.5, labelsize=(_TEXT_SIZE - 1) * layout.scale)
    bar.set_label(label, fontsize=_TEXT_SIZE * layout.scale, labelpad=1)


def _draw_legend(figure: Figure, layout: _Layout, i: int, entries: Sequence[tuple[tuple[int, int, int], str]]) -> None:
    """The legend of a column, below it."""
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=[c / 255 for c in colour], label=text) for colour, text in entries],
        loc="upper left",
        bbox_to_anchor=layout.point(layout.left(i), layout.bottom),
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        handlelength=1.1,
        handletextpad=0.5,
        labelspacing=0.25,
        columnspacing=0.6,
        ncols=1 if len(entries) <= 2 else _LEGEND_COLUMNS,
        fontsize=_TEXT_SIZE * layout.scale,
    )


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as an RGB PNG, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # the background is opaque
    with atomic_file(path) as file:
        Image.fromarray(pixels).save(file, "PNG", compress_level=6, dpi=(dpi, dpi))

"""Figures of numbers: reliability diagrams, risk-coverage curves, metrics by the number of passes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.figures.environment import drawable, font_families, load_matplotlib, without_formulas
from utils.figures.palette import CURVE_STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_THIN = {"markersize": 3.5, "linewidth": 1.2}

Results = Mapping[str, Mapping[str, Any]]  # results of `evaluate_set`, by the display name of each method


def draw_reliability(results: Results) -> Figure:
    """Reliability diagrams of several methods, top-label and foreground.

    Args:
        results: results of `evaluate_set`, by the display name of each method.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6 + 0.16 * len(results)), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", height_ratios=(3, 1))
    min_confidence = min(1 / len(result["run"]["mask_values"]) for result in results.values())
    kinds = {
        "top_label": ("Top-label", "confidence", "accuracy", min_confidence),
        "foreground": ("Foreground", "probability of foreground", "observed frequency", 0),
    }
    for (upper, lower), (kind, (title, x, y, low)) in zip(axes.T, kinds.items(), strict=True):
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        lowest = low  # on the vertical axis
        for style, (name, result) in zip(itertools.cycle(CURVE_STYLES), results.items(), strict=False):
            bins = result["reliability"][kind]
            n, total, positives = (np.array(bins[key]) for key in ("pixels", "probability", "positives"))
            used = n > 0
            lowest = min(lowest, *(positives[used] / n[used]))
            ece = result["calibration"][f"ece_{kind}"]["value"]
            label = f"{without_formulas(drawable(name))} (ECE {ece:.3f})"
            upper.plot(total[used] / n[used], positives[used] / n[used], label=label, **_THIN, **style)
            edges = np.linspace(0, 1, len(n) + 1)
            lower.stairs(n / n.sum(), edges, color=style["color"], linestyle=style["linestyle"])
        upper.set(xlim=(low, 1), ylim=(lowest, 1), ylabel=y)
        prop = {"size": 7.5, "family": font_families("".join(results))}
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}  # above all points
        upper.legend(prop=prop, title=title, title_fontsize=12, alignment="left", frameon=False, **place)
        lower.set(yscale="log", xlabel=x, ylabel="fraction of pixels")
        for ax in (upper, lower):
            ax.grid(alpha=0.25)
    return figure


def draw_risk_coverage(results: Results) -> Figure:
    """Risk-coverage curves: the mean risk, 1 - Dice, of the most confident images against their fraction of all.

    The images are ranked by soft Dice confidence. The curves are shown up to twice the risk of a random ranking.

    Args:
        results: results of `evaluate_set`, by the display name of each method.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    ax = figure.subplots()
    for style, (name, result) in zip(itertools.cycle(CURVE_STYLES), results.items(), strict=False):
        curve, selective = result["risk_coverage"]["soft_dice_confidence"], result["selective"]
        aurc, oracle = selective["soft_dice_confidence"]["aurc"]["value"], selective["oracle"]["aurc"]
        label = f"{without_formulas(drawable(name))} (AURC {aurc:.3f}, oracle {oracle:.3f})"
        spacing = max(1, len(curve["risk"]) // 12)
        ax.plot(
            curve["coverage"],
            curve["risk"],
            markevery=spacing,
            label=label,
            **_THIN,
            **style,
        )
        ax.axhline(selective["random"]["aurc"], color=style["color"], linestyle=(0, (1, 3)), linewidth=1)
    highest = 2 * max(result["selective"]["random"]["aurc"] for result in results.values()) or 1.0
    ax.set(
        xlabel="coverage: fraction of images kept, by soft Dice confidence",
        ylabel="risk: mean 1 - Dice of the images kept",
        xlim=(0, 1),
        ylim=(0, highest),  # a single bad image among the first ones would be far above
    )
    ax.grid(alpha=0.25)
    prop = {"size": 8, "family": font_families("".join(results))}
    ax.legend(prop=prop, title="dotted: random ranking", title_fontsize=8)
    return figure


def draw_passes(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Figure:
    """Metrics against the number of MC dropout passes, one panel each.

    Args:
        curves: by the display name of each metric the numbers of passes and the values.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(curves), 2.4), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)
    for ax, (name, (passes, values)) in zip(axes[0], curves.items(), strict=True):
        ax.plot(passes, values, markersize=3, **CURVE_STYLES[0])
        ax.set(xscale="log", xlabel="number of passes T", title=name)
        ax.grid(alpha=0.25)
    return figure

"""The metrics under shift as tables, and as curves for a figure."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from utils.data.corruptions import CORRUPTIONS
from utils.metrics.risk_control import REGION_LOSS_TITLES
from utils.pipeline.shifted_sets import SHIFT_METRICS

ShiftRows = Sequence[Mapping[str, Any]]  # rows of `ShiftEvaluation.evaluate`
Curve = tuple[list[int], list[float]]  # strengths and values


def shift_curves(results: ShiftRows, corruptions: Collection[str], metric: str) -> dict[str, Curve]:
    """A metric against the strength, for each method.

    Args:
        results: rows of `ShiftEvaluation.evaluate`.
        corruptions: over which the metric is averaged, where it is defined.
        metric: its name in the rows.

    Returns:
        By the names of the methods the strengths, from 0 for the unchanged images on, and the values, NaN if undefined.
    """
    values: dict[str, dict[int, list[float]]] = {}
    for row in sorted(results, key=lambda row: row["strength"]):
        if row["corruption"] in corruptions or row["strength"] == 0:
            of_strength = values.setdefault(row["method"], {}).setdefault(row["strength"], [])
            of_strength += [] if row.get(metric) is None else [row[metric]]
    return {
        method: (list(curve), [float(np.mean(one)) if one else math.nan for one in curve.values()])
        for method, curve in values.items()
    }


def shift_panels(results: ShiftRows) -> dict[str, dict[str, dict[str, Curve]]]:
    """The curves of all methods by corruption, the mean of all of them first, and by the title of the metric."""
    names = _corruptions(results)
    rows = {"mean of all": names, **{name: [name] for name in names}}
    return {
        row: {title: shift_curves(results, corruptions, metric) for metric, title in _metrics(results).items()}
        for row, corruptions in rows.items()
    }


def format_shift_means(results: ShiftRows) -> str:
    """The metrics of the unchanged images, and their means over all corruptions of each strength, as Markdown."""
    curves = [shift_curves(results, _corruptions(results), metric) for metric in _metrics(results)]
    lines = [["strength", "method", *_metrics(results).values()]]
    for strength in sorted({row["strength"] for row in results}):
        for method in curves[0]:
            lines.append([str(strength), method, *(_format_values(one[method], [strength])[0] for one in curves)])
    return _format_lines(lines)


def format_shift_tables(results: ShiftRows) -> str:
    """A Markdown table for each metric: corruptions and methods by strength."""
    tables = []
    strengths = sorted({row["strength"] for row in results})
    for metric, title in _metrics(results).items():
        lines = [["corruption", "method", *map(str, strengths)]]
        for corruption in _corruptions(results):
            for method, curve in shift_curves(results, [corruption], metric).items():
                lines.append([corruption, method, *_format_values(curve, strengths)])
        tables.append(f"## {title}\n\n{_format_lines(lines)}")
    return "\n\n".join(tables)


def _corruptions(results: ShiftRows) -> list[str]:
    return [name for name in CORRUPTIONS if name in {row["corruption"] for row in results}]


def _metrics(results: ShiftRows) -> dict[str, str]:
    """The metrics that the rows have, those of masks with a guarantee only with one, with their titles."""
    titles = SHIFT_METRICS | REGION_LOSS_TITLES
    return {metric: titles[metric] for metric in titles if any(metric in row for row in results)}


def _format_values(curve: Curve, strengths: Sequence[int]) -> list[str]:
    """The values at some strengths; empty where there is none."""
    values = dict(zip(*curve, strict=True))
    return [f"{values[x]:.4f}" if math.isfinite(values.get(x, math.nan)) else "" for x in strengths]


def _format_lines(lines: Sequence[Sequence[str]]) -> str:
    separator = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], separator, *lines[1:]))

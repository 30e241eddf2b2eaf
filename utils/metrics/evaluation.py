"""All metrics of a labelled set of images, with bootstrap confidence intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.metrics.pixel_counts import PixelCounts, sum_counts
from utils.metrics.pixel_metrics import PIXEL_METRIC_TITLES, PIXEL_METRICS
from utils.metrics.risk_control import REGION_LOSS_TITLES
from utils.metrics.segmentation import CHALLENGE_SCORES, segmentation_title
from utils.metrics.selective import SELECTIVE_METRICS, augrc, aurc, risk_coverage_curve
from utils.metrics.uncertainty import CONFIDENCE_SIGNS, score_title

_GUARANTEE_TITLES = REGION_LOSS_TITLES | {
    "outer_area_ratio": "Area, outer / predicted mask",
    "inner_area_ratio": "Area, inner / predicted mask",
}

Rows = Sequence[Mapping[str, Any]]


def evaluate_set(
    rows: Rows,
    counts: Sequence[PixelCounts] = (),
    total: PixelCounts | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """All metrics of a set of images, with 95 % bootstrap confidence intervals over the images (Efron 1979).

    Args:
        rows: for each image its segmentation scores, its `PIXEL_METRICS`, and its scores without ground truth.
        counts: for each image `PixelCounts.coarse()`, for the intervals.
        total: counts of the whole set; None if the probabilities are not evaluated.
        resamples: number of bootstrap samples, drawn with a fixed seed.

    Returns:
        `images`, `segmentation`, `selective` and `risk_coverage`; if the probabilities are evaluated also `pixels`,
        `calibration`, `errors` and `reliability`; of masks with a guarantee also `guarantee`. A metric is a dict of its
        `value`, `low` and `high` and, if it is a mean over the images, their `median`; those of the `oracle` and the
        `random` ranking are plain numbers.
    """
    n = len(rows)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples)
    by_class = [name for name in rows[0] if name.rpartition("_c")[0] in CHALLENGE_SCORES]
    result: dict[str, Any] = {"images": n}
    result["segmentation"] = {name: _mean(rows, name, weights) for name in (*CHALLENGE_SCORES, *by_class)}
    if total is not None:
        result |= _evaluate_pixels(rows, counts, total, weights)
    if "outer_area" in rows[0]:
        result["guarantee"] = _evaluate_guarantee(rows, weights)
    return result | _evaluate_selection(rows, weights)


def _mean(rows: Rows, name: str, weights: np.ndarray) -> dict[str, float | None]:
    """The mean over the images, where it is defined, with its interval and the median."""
    values = np.array([row[name] for row in rows], dtype=np.float64)
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        resampled = weights[:, defined] @ values[defined] / weights[:, defined].sum(axis=1)
    mean, median = (f(values[defined]) if defined.any() else np.nan for f in (np.mean, np.median))
    return _interval(mean, resampled) | {"median": _json_number(median)}


def _evaluate_pixels(
    rows: Rows, counts: Sequence[PixelCounts], total: PixelCounts, weights: np.ndarray
) -> dict[str, Any]:
    """Calibration, error detection and reliability diagrams."""
    resampled, coarse = sum_counts(counts, weights), total.coarse()
    pooled = {}
    for name, metric in PIXEL_METRICS.items():
        value = float(metric(total))
        pooled[name] = _interval(value, metric(resampled) + (value - float(metric(coarse))))  # without what bins change
    per_image = {f"{name}_per_image": _mean(rows, name, weights) for name in ("ece_top_label", "ece_foreground")}
    return {
        "pixels": int(total.pixels),
        "calibration": {name: metric for name, metric in pooled.items() if not name.startswith("error")} | per_image,
        "errors": {name: metric for name, metric in pooled.items() if name.startswith("error")},
        "reliability": {
            name: dict(zip(("pixels", "probability", "positives"), getattr(total, name).tolist(), strict=True))
            for name in ("top_label", "foreground")
        },
    }


def _evaluate_guarantee(rows: Rows, weights: np.ndarray) -> dict[str, Any]:
    """The mean losses of the masks with a guarantee, and their areas relative to those of the predicted masks."""
    predicted = np.array([row["area"] for row in rows], dtype=np.float64)
    areas = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name in ("outer_area", "inner_area"):
            values = np.array([row[name] for row in rows], dtype=np.float64)
            resampled = (weights @ values) / (weights @ predicted)
            areas[f"{name}_ratio"] = _interval(np.divide(values.sum(), predicted.sum()), resampled)
    return {name: _mean(rows, name, weights) for name in REGION_LOSS_TITLES} | areas


def _evaluate_selection(rows: Rows, weights: np.ndarray) -> dict[str, Any]:
    """Selective prediction by each score that needs no ground truth, by the oracle, and at random."""
    risks = 1 - np.array([row["dice"] for row in rows])
    selective, curves = {}, {}
    for name, sign in CONFIDENCE_SIGNS.items():
        if any(row.get(name) is None for row in rows):
            continue
        confidence = sign * np.array([row[name] for row in rows], dtype=np.float64)
        resampled = [
            [f(np.repeat(confidence, repeats), np.repeat(risks, repeats)) for f in SELECTIVE_METRICS.values()]
            for repeats in weights
        ]
        selective[name] = {
            metric: _interval(f(confidence, risks), values)
            for (metric, f), values in zip(SELECTIVE_METRICS.items(), np.array(resampled).T, strict=True)
        }
        coverage, risk = risk_coverage_curve(confidence, risks)
        curves[name] = {"coverage": coverage.tolist(), "risk": risk.tolist()}
    for name, confidence in (("oracle", -risks), ("random", np.zeros(len(risks)))):
        selective[name] = {"aurc": aurc(confidence, risks), "augrc": augrc(confidence, risks)}
    return {"selective": selective, "risk_coverage": curves}


def _interval(value: float, resampled: np.ndarray) -> dict[str, float | None]:
    """A value with the 2.5th and 97.5th percentile of its bootstrap samples."""
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (np.nan, np.nan)
    return {"value": _json_number(value), "low": _json_number(low), "high": _json_number(high)}


def _json_number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def format_evaluation(result: Mapping[str, Any]) -> str:
    """The metrics of a set as human-readable lines."""
    lines = [
        f"{segmentation_title(name):<12} mean {one['value']:.4f}   median {one['median']:.4f}   "
        f"95 % CI of the mean {one['low']:.4f} to {one['high']:.4f}"
        for name, one in result["segmentation"].items()
        if name in CHALLENGE_SCORES or name.startswith(("dice_c", "jaccard_c"))
    ]
    pooled = result.get("calibration", {}) | result.get("errors", {})
    named = [(title, pooled[name]) for name, title in PIXEL_METRIC_TITLES.items() if name in pooled]
    if pooled:
        selective = result["selective"]
        named += [
            (f"AURC of {score_title(name)}", selective[name]["aurc"]) for name in CONFIDENCE_SIGNS if name in selective
        ]
    named += [(title, result["guarantee"][name]) for name, title in _GUARANTEE_TITLES.items() if "guarantee" in result]
    for title, one in named:
        defined = None not in (one["value"], one["low"], one["high"])
        text = f"{one['value']:.4f}   95 % CI {one['low']:.4f} to {one['high']:.4f}" if defined else "undefined"
        lines.append(f"{title:<36} {text}")
    return "\n".join(lines)

"""All metrics of a labelled set of images, with bootstrap confidence intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.metrics.pixel_counts import PixelCounts, sum_counts
from utils.metrics.pixel_metrics import PIXEL_METRIC_TITLES, PIXEL_METRICS
from utils.metrics.risk_control import REGION_LOSS_TITLES
from utils.metrics.segmentation import CHALLENGE_SCORES, absent_classes, segmentation_title, where_shown
from utils.metrics.selective import SELECTIVE_METRICS, augrc, aurc, risk_coverage_curve
from utils.metrics.uncertainty import CONFIDENCE_SIGNS, score_title

_GUARANTEE_TITLES = REGION_LOSS_TITLES | {
    "outer_area_ratio": "Area, outer / predicted mask",
    "inner_area_ratio": "Area, inner / predicted mask",
}

MIN_IMAGES_OF_INTERVAL = 10  # the percentile bootstrap of fewer is far too narrow

Rows = Sequence[Mapping[str, Any]]


def evaluate_set(
    rows: Rows,
    counts: Sequence[PixelCounts] = (),
    total: PixelCounts | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """All metrics of a set of images, with 95 % bootstrap confidence intervals over the images (Efron 1979).

    Dice, Jaccard, sensitivity and what is made of Dice, selective prediction, are of the images with a lesion, those of
    a class of the images in which it occurs.

    Args:
        rows: for each image its segmentation scores, its `PIXEL_METRICS`, and its scores without ground truth.
        counts: for each image `PixelCounts.coarse()`, for the intervals.
        total: counts of the whole set; None if the probabilities are not evaluated.
        resamples: number of bootstrap samples, drawn with a fixed seed.

    Returns:
        `images`, `segmentation`, `selective` and `risk_coverage`; if there are images without a lesion, or without one
        of several classes, also `without`; if the probabilities are evaluated also `pixels`, `calibration`,
        `errors` and `reliability`; of masks with a guarantee also `guarantee`. A metric is a dict of its `value`, `low`
        and `high` and, if it is a mean over the images, their `median`; those of the `oracle` and the `random` ranking
        are plain numbers. What is undefined is None, as are `low` and `high` of fewer than `MIN_IMAGES_OF_INTERVAL`.
    """
    n = len(rows)
    resamples = resamples if n >= MIN_IMAGES_OF_INTERVAL else 0
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples)
    by_class = [name for name in rows[0] if name.rpartition("_c")[0] in CHALLENGE_SCORES]
    result: dict[str, Any] = {"images": n}
    shown = [where_shown(row) for row in rows]
    result["segmentation"] = {name: _mean(shown, name, weights) for name in (*CHALLENGE_SCORES, *by_class)}
    if without := _count_false_alarms(rows):
        result["without"] = without
    if total is not None:
        result |= _evaluate_pixels(rows, counts, total, weights)
    if "outer_area" in rows[0]:
        result["guarantee"] = _evaluate_guarantee(rows, weights)
    return result | _evaluate_selection(shown, weights)


def _count_false_alarms(rows: Rows) -> dict[str, dict[str, float]]:
    """The number of images without a lesion, and without each of several classes, and how often one is predicted."""
    result = {}
    absent = [absent_classes(row) for row in rows]
    for suffix in sorted({suffix for one in absent for suffix in one}, key=lambda suffix: (len(suffix), suffix)):
        alarms = [row[f"dice{suffix}"] < 1 for row, one in zip(rows, absent, strict=True) if suffix in one]
        name = suffix.replace("_c", "class_") or "lesion"
        result[name] = {"images": len(alarms), "false_alarm_rate": sum(alarms) / len(alarms)}
    return result


def _mean(rows: Rows, name: str, weights: np.ndarray) -> dict[str, float | None]:
    """The mean over the images, where it is defined, with its interval and the median."""
    values = np.array([row[name] for row in rows], dtype=np.float64)
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        resampled = weights[:, defined] @ values[defined] / weights[:, defined].sum(axis=1)
    mean, median = (f(values[defined]) if defined.any() else np.nan for f in (np.mean, np.median))
    return _interval(mean, resampled, np.count_nonzero(defined)) | {"median": _json_number(median)}


def _evaluate_pixels(
    rows: Rows, counts: Sequence[PixelCounts], total: PixelCounts, weights: np.ndarray
) -> dict[str, Any]:
    """Calibration, error detection and reliability diagrams."""
    resampled, coarse = sum_counts(counts, weights), total.coarse()
    pooled = {}
    for name, metric in PIXEL_METRICS.items():
        value = float(metric(total))
        without_bins = metric(resampled) + (value - float(metric(coarse)))  # without what the bins change
        pooled[name] = _interval(value, without_bins, len(rows))
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
            areas[f"{name}_ratio"] = _interval(np.divide(values.sum(), predicted.sum()), resampled, len(rows))
    return {name: _mean(rows, name, weights) for name in REGION_LOSS_TITLES} | areas


def _evaluate_selection(rows: Rows, weights: np.ndarray) -> dict[str, Any]:
    """Selective prediction by each score that needs no ground truth, by the oracle, and at random."""
    risks = 1 - np.array([row["dice"] for row in rows])
    defined = np.isfinite(risks)
    rows, risks = [row for row, kept in zip(rows, defined, strict=True) if kept], risks[defined]
    if not rows:
        return {"selective": {}, "risk_coverage": {}}
    weights = weights[:, defined]
    weights = weights[weights.any(axis=1)]
    selective, curves = {}, {}
    for name, sign in CONFIDENCE_SIGNS.items():
        if any(row.get(name) is None for row in rows):
            continue
        confidence = sign * np.array([row[name] for row in rows], dtype=np.float64)
        selective[name] = {
            metric: _interval(f(confidence, risks, None), f(confidence, risks, weights), len(rows))
            for metric, f in SELECTIVE_METRICS.items()
        }
        coverage, risk = risk_coverage_curve(confidence, risks)
        curves[name] = {"coverage": coverage.tolist(), "risk": risk.tolist()}
    for name, confidence in (("oracle", -risks), ("random", np.zeros(len(risks)))):
        selective[name] = {"aurc": float(aurc(confidence, risks)), "augrc": float(augrc(confidence, risks))}
    return {"selective": selective, "risk_coverage": curves}


def _interval(value: float, resampled: np.ndarray, n_images: int) -> dict[str, float | None]:
    """A value with the 2.5th and 97.5th percentile of its bootstrap samples, None for too few images."""
    resampled = resampled[np.isfinite(resampled)]
    known = len(resampled) and n_images >= MIN_IMAGES_OF_INTERVAL
    low, high = np.percentile(resampled, [2.5, 97.5]) if known else (np.nan, np.nan)
    return {"value": _json_number(value), "low": _json_number(low), "high": _json_number(high)}


def _json_number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def format_evaluation(result: Mapping[str, Any]) -> str:
    """The metrics of a set as human-readable lines."""
    means = {
        segmentation_title(name): one
        for name, one in result["segmentation"].items()
        if name in CHALLENGE_SCORES or name.startswith(("dice_c", "jaccard_c"))
    }
    pooled = result.get("calibration", {}) | result.get("errors", {})
    others = {title: pooled[name] for name, title in PIXEL_METRIC_TITLES.items() if name in pooled}
    if pooled:
        selective = result["selective"]
        scores = [name for name in CONFIDENCE_SIGNS if name in selective]
        others |= {f"AURC of {score_title(name)}": selective[name]["aurc"] for name in scores}
    others |= {title: result["guarantee"][name] for name, title in _GUARANTEE_TITLES.items() if "guarantee" in result}
    width = max(12, *map(len, means))
    lines = [f"{title:<{width}} {_format_metric(one, is_mean=True)}" for title, one in means.items()]
    lines += [_format_false_alarms(name, **one) for name, one in result.get("without", {}).items()]
    lines += [f"{title:<36} {_format_metric(one)}" for title, one in others.items()]
    if any(one["value"] is not None and one["low"] is None for one in (*means.values(), *others.values())):
        lines.append(f"No 95 % CI of fewer than {MIN_IMAGES_OF_INTERVAL} images: it would be far too narrow")
    return "\n".join(lines)


def _format_metric(metric: Mapping[str, float | None], is_mean: bool = False) -> str:
    """A metric with its interval, as far as they are defined; if it is a mean over the images, with the median."""
    if metric["value"] is None:
        return "undefined"
    text = f"mean {metric['value']:.4f}   median {metric['median']:.4f}" if is_mean else f"{metric['value']:.4f}"
    if None in (metric["low"], metric["high"]):
        return text
    return f"{text}   95 % CI {'of the mean ' * is_mean}{metric['low']:.4f} to {metric['high']:.4f}"


def _format_false_alarms(name: str, images: int, false_alarm_rate: float) -> str:
    """A line on the images without a lesion, or without one of several classes."""
    subject, some, none = name.replace("_", " "), "some of it", "none of it"
    if name == "lesion":
        subject, some, none = "a lesion", "something", "nothing"
    marked = round(images * false_alarm_rate)
    which = f"with {some if marked else none} marked" if images == 1 else f"{marked} of them with {some} marked"
    return f"Without {subject}: {images} image{'s' * (images > 1)}, {which}"

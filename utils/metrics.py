"""Metrics against a truth: of segmentation, of calibration, and of how well uncertainty finds errors.

What a pixel says goes into `PixelCounts`, sums and histograms of a fixed size, so all metrics are over all pixels
and an image takes a few kilobytes, whatever its size. The metrics are functions of these counts, the same for an
image, for a set and for a thousand resamples of it at once.
"""

import math
import operator
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.uncertainty import CONFIDENCE_SIGNS, readable

# The scores of the ISIC 2016 challenge, which ranks by the mean Jaccard index (Gutman et al., arXiv:1605.01397).
SCORES = ("dice", "jaccard", "sensitivity", "specificity", "accuracy")

N_BINS = 15  # of a reliability diagram
MIN_PROBABILITY = 1e-7  # a smaller one counts as this in the NLL

# -- segmentation ----------------------------------------------------------------------------------------------------


def segmentation_scores(predicted: np.ndarray, truth: np.ndarray, n_classes: int = 2) -> dict[str, float]:
    """Scores of one image's mask.

    Args:
        predicted, truth: (H, W) class indices.
        n_classes: number of classes C >= 2, the first of them background.

    Returns:
        `SCORES` by name, from 0 to 1. Each class but the background is taken against all others; a ratio of
        nothing to nothing is 1, so two empty masks agree. With more than two classes these are the means over the
        classes, beside each class's own (`dice_c1`, ...), and the accuracy counts all classes at once.
    """
    codes = truth.astype(np.int64).ravel() * n_classes + predicted.astype(np.int64).ravel()
    confusion = np.bincount(codes, minlength=n_classes**2).reshape(n_classes, n_classes)  # [truth, predicted]
    total, correct = confusion.sum(), np.trace(confusion)
    by_class = []
    for k in range(1, n_classes):
        both = confusion[k, k]
        true_k, predicted_k = confusion[k].sum(), confusion[:, k].sum()
        neither = total - true_k - predicted_k + both
        by_class.append(
            {
                "dice": _ratio(2 * both, true_k + predicted_k),
                "jaccard": _ratio(both, true_k + predicted_k - both),
                "sensitivity": _ratio(both, true_k),
                "specificity": _ratio(neither, total - true_k),
            }
        )
    scores = {name: float(np.mean([one[name] for one in by_class])) for name in by_class[0]}
    scores["accuracy"] = _ratio(correct, total)
    if n_classes > 2:
        scores |= {f"{name}_c{k}": value for k, one in enumerate(by_class, 1) for name, value in one.items()}
    return scores


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else 1.0


# -- what pixels say -------------------------------------------------------------------------------------------------


_DOUBT_OCTAVES = 24  # of 1 - confidence, down from 1; a float32 has no smaller steps below 1
_PER_OCTAVE = 2**7
_ENTROPY_BINS, _LOGIT_LIMIT = 2**12, 16.2  # a float32 has no logit beyond
_MERGED = 8  # fine bins that are one in `PixelCounts.coarse`
_AT_ONCE = 2**19  # pixels


def doubt_bins(doubt: Tensor) -> Tensor:
    """The fine bin of each 1 - confidence, int32: 128 to the octave, so that a bin is 0.8 % wide or less.

    A bin is the upper bits of a float32, whose order is that of the numbers.

    Args:
        doubt: float32 in [0, 1).
    """
    lowest = (127 - _DOUBT_OCTAVES) * _PER_OCTAVE  # 127 is the exponent of 1
    bits = doubt.view(torch.int32) >> 16  # 7 of the 23 bits of the fraction stay
    return (bits - lowest).clamp_(0, _DOUBT_OCTAVES * _PER_OCTAVE - 1)


def doubt_middles(n: int) -> np.ndarray:
    """The middle of each bin of 1 - confidence, (n,) float64, where the fine bins have been merged to n."""
    edges = np.linspace(0, _DOUBT_OCTAVES * _PER_OCTAVE, n + 1).astype(np.int64)
    octave, part = np.divmod(edges, _PER_OCTAVE)
    values = 2.0 ** (octave - _DOUBT_OCTAVES) * (1 + part / _PER_OCTAVE)
    return (values[:-1] + values[1:]) / 2


def entropy_bins(entropy: Tensor, n_classes: int) -> Tensor:
    """The fine bin of each entropy, int32: equal bins of the logit of its part of ln C.

    So the bins are narrow where most pixels are, near 0, and where most errors are, near ln C.
    """
    logit = (entropy / math.log(n_classes)).logit_(eps=1e-7)
    return logit.add_(_LOGIT_LIMIT).mul_(_ENTROPY_BINS / (2 * _LOGIT_LIMIT)).clamp_(0, _ENTROPY_BINS - 1).int()


_TYPES = ("<f8", "<f8", "<f8", "<f8", "<i4", "<i4")  # of the fields of PixelCounts, packed


@dataclass
class PixelCounts:
    """Sums over pixels. Any leading dimensions stand for several images or sets at once.

    The confidence of a pixel is the probability of its most probable class; it is right if that is the true one.

    Attributes:
        top_label: (..., 3, N_BINS) float64, by equal bins of the confidence: pixels, their sum of confidences, and
            how many are right.
        foreground: (..., 3, N_BINS) float64, by equal bins of the probability of anything but background: pixels,
            their sum of probabilities, and how many are not background.
        squared_error: (...,) float64, half the sum over the classes of (p_k - [y = k])^2; of two classes (p - y)^2.
        log_loss: (...,) float64, the sum of -ln p_y in nats, with p_y at least `MIN_PROBABILITY`.
        by_doubt: (..., 2, n) int64, wrong and right pixels by 1 - confidence, in the bins of `doubt_bins`
            or fewer.
        by_entropy: (..., 2, n) int64, wrong and right pixels by predictive entropy, in the bins of
            `entropy_bins` or fewer.
    """

    top_label: np.ndarray
    foreground: np.ndarray
    squared_error: np.ndarray
    log_loss: np.ndarray
    by_doubt: np.ndarray
    by_entropy: np.ndarray

    @property
    def pixels(self) -> np.ndarray:
        """(...,) how many there are."""
        return self.top_label[..., 0, :].sum(axis=-1)

    def __add__(self, other: "PixelCounts") -> "PixelCounts":
        return PixelCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def pack(self) -> bytes:
        """The counts of one image as a few kilobytes."""
        return zlib.compress(
            b"".join(getattr(self, f.name).astype(t).tobytes() for f, t in zip(fields(self), _TYPES, strict=True))
        )

    @classmethod
    def unpack(cls, packed: bytes) -> "PixelCounts":
        """What `pack` packed."""
        content, start, arrays = zlib.decompress(packed), 0, []
        shapes = ((3, N_BINS), (3, N_BINS), (), (), (2, _DOUBT_OCTAVES * _PER_OCTAVE), (2, _ENTROPY_BINS))
        for dtype, shape in zip(_TYPES, shapes, strict=True):
            packed_array = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape)
            arrays.append(packed_array.astype(np.float64 if dtype == "<f8" else np.int64))
            start += packed_array.nbytes
        return cls(*arrays)

    def coarse(self) -> "PixelCounts":
        """The same with the fine bins merged, small enough to draw sets of many images."""

        def merge(counts: np.ndarray) -> np.ndarray:
            return counts.reshape(*counts.shape[:-1], -1, _MERGED).sum(axis=-1)

        rest = (self.top_label, self.foreground, self.squared_error, self.log_loss)
        return PixelCounts(*rest, merge(self.by_doubt), merge(self.by_entropy))


def pixel_counts(probs: Tensor, predictive_entropy: Tensor, truth: Tensor) -> PixelCounts:
    """What the pixels of one image say.

    Args:
        probs: (C, H, W) float32.
        predictive_entropy: (H, W) float32 in nats.
        truth: (H, W) integer class indices, on the same device.
    """
    if probs.device.type == "mps":  # has no double precision
        probs, predictive_entropy, truth = probs.cpu(), predictive_entropy.cpu(), truth.cpu()
    parts = zip(
        probs.flatten(1).split(_AT_ONCE, dim=1),
        predictive_entropy.flatten().split(_AT_ONCE),
        truth.flatten().split(_AT_ONCE),
        strict=True,
    )
    return reduce(operator.add, (_count(*part) for part in parts))


def _count(probs: Tensor, entropy: Tensor, truth: Tensor) -> PixelCounts:
    """`pixel_counts` of (C, n), (n,) and (n,)."""
    if len(probs) == 2:
        confidence, predicted, lesion = torch.maximum(probs[0], probs[1]), probs[1] > probs[0], probs[1]
        p_true = torch.where(truth > 0, probs[1], probs[0])
        squared_error = (1 - p_true).square_()
    else:
        (confidence, predicted), lesion = probs.max(dim=0), probs[1:].sum(dim=0)
        p_true = probs.gather(0, truth[None].long())[0]
        squared_error = 0.5 * (probs.square().sum(dim=0) - 2 * p_true + 1)
    right = (predicted == truth).int()

    def fine(index: Tensor, n: int) -> np.ndarray:
        return torch.bincount(index + n * right, minlength=2 * n).view(2, -1).cpu().numpy()

    return PixelCounts(
        top_label=_by_bin(confidence, right),
        foreground=_by_bin(lesion, (truth > 0).int()),
        squared_error=squared_error.sum(dtype=torch.float64).cpu().numpy(),
        log_loss=-p_true.clamp(min=MIN_PROBABILITY).log().sum(dtype=torch.float64).cpu().numpy(),
        by_doubt=fine(doubt_bins(1 - confidence), _DOUBT_OCTAVES * _PER_OCTAVE),
        by_entropy=fine(entropy_bins(entropy, len(probs)), _ENTROPY_BINS),
    )


def _by_bin(probability: Tensor, hit: Tensor) -> np.ndarray:
    """(3, N_BINS) by the bins (0, 1/15], (1/15, 2/15], ...: pixels, sum of probabilities, hits."""
    index = (probability * N_BINS).ceil_().sub_(1).clamp_(0, N_BINS - 1).int()
    missed, hits = torch.bincount(index + N_BINS * hit, minlength=2 * N_BINS).view(2, -1)
    total = torch.bincount(index, weights=probability.double(), minlength=N_BINS)
    return torch.stack([missed + hits, total, hits]).cpu().numpy()


def sum_counts(counts: Sequence[PixelCounts], weights: np.ndarray) -> PixelCounts:
    """The counts of B sets at once, with a leading dimension B.

    Args:
        counts: of n images.
        weights: (B, n), how often each image stands in each set.
    """
    weights = weights.astype(np.float64)

    def total(name: str) -> np.ndarray:
        return np.tensordot(weights, np.stack([getattr(one, name) for one in counts]), axes=1)

    return PixelCounts(*(total(f.name) for f in fields(PixelCounts)))


# -- calibration, and pixels' uncertainty as a detector of errors ------------------------------------------------------


def expected_calibration_error(by_bin: np.ndarray) -> np.ndarray:
    """ECE (Naeini et al., AAAI 2015): sum over the bins of n_b / N |hits_b / n_b - mean probability_b|.

    Args:
        by_bin: (..., 3, N_BINS), `PixelCounts.top_label` or `.foreground`.

    Returns:
        (...,) from 0 to 1.
    """
    n, total, hits = np.moveaxis(by_bin, -2, 0)
    return np.abs(hits - total).sum(axis=-1) / n.sum(axis=-1)


def adaptive_calibration_error(by_doubt: np.ndarray) -> np.ndarray:
    """The top-label ECE with bins of equal mass (Nixon et al., CVPR workshops 2019).

    Args:
        by_doubt: (..., 2, n), `PixelCounts.by_doubt`.

    Returns:
        (...,) from 0 to 1.
    """
    wrong, right = np.moveaxis(by_doubt.astype(np.float64), -2, 0)
    n = wrong + right
    excess = n * (1 - doubt_middles(n.shape[-1])) - right  # of confidence over accuracy, in pixels
    result = np.empty(n.shape[:-1])
    for i in np.ndindex(result.shape):
        mass = np.concatenate([[0], n[i].cumsum()])
        at = np.linspace(0, mass[-1], N_BINS + 1)
        result[i] = np.abs(np.diff(np.interp(at, mass, np.concatenate([[0], excess[i].cumsum()])))).sum() / mass[-1]
    return result


def error_auroc(by_entropy: np.ndarray) -> np.ndarray:
    """The probability that a wrong pixel has a higher entropy than a right one (area under the ROC curve).

    Args:
        by_entropy: (..., 2, n), `PixelCounts.by_entropy`.

    Returns:
        (...,) from 0 to 1; NaN if all pixels are right, or all wrong.
    """
    wrong, right = np.moveaxis(by_entropy.astype(np.float64), -2, 0)
    below = right.cumsum(axis=-1) - right / 2  # right pixels of lower entropy; of those in the same bin half
    return _divide((wrong * below).sum(axis=-1), wrong.sum(axis=-1) * right.sum(axis=-1))


def error_aupr(by_entropy: np.ndarray) -> np.ndarray:
    """The average precision with which the entropy finds wrong pixels (area under the precision-recall curve).

    Args:
        by_entropy: (..., 2, n), `PixelCounts.by_entropy`.

    Returns:
        (...,) from 0 to 1; NaN if all pixels are right.
    """
    wrong, right = np.moveaxis(by_entropy[..., ::-1].astype(np.float64), -2, 0)  # the most uncertain first
    # In the middle of the wrong pixels of a bin, taken to be in random order among the right ones.
    found = wrong.cumsum(axis=-1) - (wrong - 1) / 2
    passed = right.cumsum(axis=-1) - right / 2
    precision = found / np.maximum(found + passed, 1)
    return _divide((wrong * precision).sum(axis=-1), wrong.sum(axis=-1))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


# By the name that they have in metrics.json and metrics.csv.
PIXEL_METRICS: dict[str, Callable[[PixelCounts], np.ndarray]] = {
    "ece_top_label": lambda counts: expected_calibration_error(counts.top_label),
    "ece_foreground": lambda counts: expected_calibration_error(counts.foreground),
    "adaptive_ece": lambda counts: adaptive_calibration_error(counts.by_doubt),
    "brier": lambda counts: counts.squared_error / counts.pixels,
    "nll": lambda counts: counts.log_loss / counts.pixels,
    "error_auroc": lambda counts: error_auroc(counts.by_entropy),
    "error_aupr": lambda counts: error_aupr(counts.by_entropy),
}


# -- images' confidence as a guide to what to review -------------------------------------------------------------------


def risks_by_confidence(confidence: np.ndarray, risks: np.ndarray) -> np.ndarray:
    """Risks with the most confident first; images of equal confidence share their mean risk.

    Args:
        confidence, risks: (n,).
    """
    values, group = np.unique(-np.asarray(confidence, dtype=np.float64), return_inverse=True)
    size = np.bincount(group, minlength=len(values))
    mean = np.bincount(group, weights=risks, minlength=len(values)) / size
    return np.repeat(mean, size)


def aurc(confidence: np.ndarray, risks: np.ndarray) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv, NeurIPS 2017).

    The mean, over k = 1 ... n, of the mean risk of the k most confident images.

    Args:
        confidence, risks: (n,).
    """
    ordered = risks_by_confidence(confidence, risks)
    return float(np.mean(np.cumsum(ordered) / np.arange(1, len(ordered) + 1)))


def excess_aurc(confidence: np.ndarray, risks: np.ndarray) -> float:
    """E-AURC: the AURC less that of the best possible order (Geifman, Uziel and El-Yaniv, ICLR 2019)."""
    return aurc(confidence, risks) - aurc(-risks, risks)


def augrc(confidence: np.ndarray, risks: np.ndarray) -> float:
    """Area under the generalised risk-coverage curve (Traub et al., NeurIPS 2024).

    The mean, over k = 1 ... n, of the summed risk of the k most confident images over n.
    """
    return float(np.mean(np.cumsum(risks_by_confidence(confidence, risks))) / len(risks))


SELECTIVE_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "aurc": aurc,
    "e_aurc": excess_aurc,
    "augrc": augrc,
}


# -- a set of images -------------------------------------------------------------------------------------------------


def evaluate_set(
    rows: Sequence[Mapping[str, Any]],
    counts: Sequence[PixelCounts] = (),
    total: PixelCounts | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """All metrics of a set of images, with 95 % bootstrap intervals over the images (Efron 1979).

    Args:
        rows: for each image its segmentation scores, its `PIXEL_METRICS`, and its scores without a truth.
        counts: for each image `PixelCounts.coarse()`, for the intervals.
        total: of the whole set; None where the probabilities are not to be judged.
        resamples: number of sets drawn with replacement, from the same random numbers each time.

    Returns:
        What metrics.json holds: `segmentation`, `calibration`, `errors`, `selective`, `reliability` and
        `risk_coverage`. A metric is a dict of its `value`, `low` and `high` and, where it is a mean over the images,
        their `median`.
    """
    n = len(rows)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples)

    def interval(value: float, drawn: np.ndarray) -> dict[str, float | None]:
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        return {"value": _plain(value), "low": _plain(low), "high": _plain(high)}

    def over_images(name: str) -> dict[str, float | None]:
        values = np.array([row[name] for row in rows], dtype=np.float64)
        known = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            drawn = weights[:, known] @ values[known] / weights[:, known].sum(axis=1)
        mean, median = (f(values[known]) if known.any() else np.nan for f in (np.mean, np.median))
        return interval(mean, drawn) | {"median": _plain(median)}

    result: dict[str, Any] = {"images": n}
    by_class = [name for name in rows[0] if name.rpartition("_c")[0] in SCORES]
    result["segmentation"] = {name: over_images(name) for name in (*SCORES, *by_class)}
    if total is not None:
        result["pixels"] = int(total.pixels)
        drawn = sum_counts(counts, weights)
        pooled = {name: interval(float(f(total)), f(drawn)) for name, f in PIXEL_METRICS.items()}
        per_image = {f"{name}_per_image": over_images(name) for name in ("ece_top_label", "ece_foreground")}
        result["calibration"] = {k: v for k, v in pooled.items() if not k.startswith("error")} | per_image
        result["errors"] = {k: v for k, v in pooled.items() if k.startswith("error")}
        result["reliability"] = {
            name: dict(zip(("pixels", "probability", "hits"), getattr(total, name).tolist(), strict=True))
            for name in ("top_label", "foreground")
        }
    risks = 1 - np.array([row["dice"] for row in rows])
    result["selective"], result["risk_coverage"] = {}, {}
    for name, sign in CONFIDENCE_SIGNS.items():
        if any(row.get(name) is None for row in rows):
            continue
        confidence = sign * np.array([row[name] for row in rows], dtype=np.float64)
        ordered = risks_by_confidence(confidence, risks)
        drawn = [
            [f(np.repeat(confidence, times), np.repeat(risks, times)) for f in SELECTIVE_METRICS.values()]
            for times in weights
        ]
        result["selective"][name] = {
            metric: interval(f(confidence, risks), of_sets)
            for (metric, f), of_sets in zip(SELECTIVE_METRICS.items(), np.array(drawn).T, strict=True)
        }
        result["risk_coverage"][name] = {
            "coverage": (np.arange(1, n + 1) / n).tolist(),
            "risk": (np.cumsum(ordered) / np.arange(1, n + 1)).tolist(),
        }
    result["selective"]["best_order"] = {"aurc": aurc(-risks, risks), "augrc": augrc(-risks, risks)}
    result["selective"]["random_order"] = {"aurc": aurc(np.zeros(n), risks), "augrc": augrc(np.zeros(n), risks)}
    return result


def _plain(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def score_title(name: str) -> str:
    """The name for people of a segmentation score, or of that of a single class, such as dice_c2."""
    score, of_class, k = name.partition("_c")
    return f"{score.capitalize()}, class {k}" if of_class else name.capitalize()


def describe(result: Mapping[str, Any]) -> str:
    """The metrics of a set for people, a line each."""
    lines = [
        f"{score_title(name):<12} mean {one['value']:.4f}   median {one['median']:.4f}   "
        f"95 % interval of the mean {one['low']:.4f} to {one['high']:.4f}"
        for name, one in result["segmentation"].items()
        if name in SCORES or name.startswith(("dice_c", "jaccard_c"))
    ]
    titles = {
        "ece_top_label": "ECE, top-label, pooled",
        "ece_foreground": "ECE, foreground, pooled",
        "ece_top_label_per_image": "ECE, top-label, per image",
        "ece_foreground_per_image": "ECE, foreground, per image",
        "adaptive_ece": "Adaptive ECE",
        "brier": "Brier score",
        "nll": "NLL (nats)",
        "error_auroc": "Pixel error AUROC of entropy",
        "error_aupr": "Pixel error AUPR of entropy",
    }
    pooled = result.get("calibration", {}) | result.get("errors", {})
    named = [(title, pooled[name]) for name, title in titles.items() if name in pooled]
    if pooled:
        selective = {k: v for k, v in result["selective"].items() if k in CONFIDENCE_SIGNS}
        named += [(f"AURC of {readable(name)}", metrics["aurc"]) for name, metrics in selective.items()]
    for title, one in named:
        known = None not in (one["value"], one["low"], one["high"])
        text = f"{one['value']:.4f}   95 % interval {one['low']:.4f} to {one['high']:.4f}" if known else "undefined"
        lines.append(f"{title:<36} {text}")
    return "\n".join(lines)

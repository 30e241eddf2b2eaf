"""What differs between sources of dermoscopy images: features of an image's appearance, and clusters by them."""

from dataclasses import dataclass

import numpy as np

from tests.benchmarks.small_lesions import grown
from utils.data.spatial_filters import coordinates, gaussian_blur, unit

_MAX_SCORE = 3.0  # of a standardised feature, so that a few outliers are no cluster of their own


@dataclass(frozen=True)
class Feature:
    """A feature of an image.

    Attributes:
        low, high: in words, an image with a low and a high value.
        weight: of its square in the distance between images.
    """

    low: str
    high: str
    weight: float = 1.0


FEATURES = {
    "brightness": Feature("dark", "bright"),
    "redness": Feature("pale", "red"),
    "yellowness": Feature("bluish", "yellow"),
    "gradient": Feature("darker towards the border", "even to the border"),
    "corners": Feature("no vignette", "vignette", 2.0),
    "contrast": Feature("faint lesions", "dark lesions"),
    "area": Feature("small lesions", "large lesions"),
    "coloured": Feature("nothing coloured", "stickers or ink"),
    "detail": Feature("smooth skin", "hair, ruler or furrows"),
    "highlights": Feature("no reflections", "bubbles or reflections", 0.5),
}


def appearance(image: np.ndarray, lesion: np.ndarray) -> dict[str, float]:
    """The `FEATURES` of an image.

    Args:
        image: (H, W, 3) float32 RGB in [0, 1].
        lesion: (H, W) bool.
    """
    pixel = unit(image.shape)
    brightness = image.mean(axis=-1)
    outside = ~grown(lesion, 5 * pixel)
    if outside.mean() < 0.01:
        outside = np.ones_like(lesion)
    typical = np.percentile(brightness[outside], 75)
    dark = brightness < 0.35 * typical
    skin = outside & (brightness >= 0.65 * typical)
    red, green, blue = image[skin].mean(axis=0)

    # Chromaticity, which ink, stickers and gauze have of their own
    chroma = image / (image.sum(axis=-1, keepdims=True) + 1e-3)
    away = np.abs(chroma - np.median(chroma[skin], axis=0)).max(axis=-1)

    # From the centre to the border, and the corners
    x, y = coordinates(image.shape)
    radius = np.maximum(np.abs(x) / np.abs(x).max(), np.abs(y) / np.abs(y).max())
    border, corners = outside & (radius > 0.8) & ~dark, (np.abs(x) / x.max() + np.abs(y) / y.max()) > 1.7
    inner = outside & (radius < 0.7)
    gradient = brightness[border].mean() - brightness[inner].mean() if border.any() and inner.any() else 0.0

    # Lines and edges of the skin, which are too thin for shading
    fine = np.abs(brightness - gaussian_blur(brightness, 1.5 * pixel))[skin]
    return {
        "brightness": float(brightness[skin].mean()),
        "redness": float(np.log((red + 0.01) / (green + 0.01))),
        "yellowness": float(np.log((green + 0.01) / (blue + 0.01))),
        "gradient": float(gradient),
        "corners": float(dark[corners].mean()),
        "contrast": float(brightness[skin].mean() - brightness[lesion].mean()) if lesion.any() else 0.0,
        "area": float(np.sqrt(lesion.mean())),
        "coloured": float(np.sqrt(np.mean(outside & ~dark & (away > 0.08)))),
        "detail": float(np.log(np.percentile(fine, 95) + 1e-3)),
        "highlights": float(np.sqrt(np.mean(outside & (image.min(axis=-1) > min(typical + 0.2, 0.95))))),
    }


def standardised(values: np.ndarray) -> np.ndarray:
    """(N, F) features with mean 0 and standard deviation 1 each, clamped at 3 standard deviations."""
    deviation = values.std(axis=0)
    scores = (values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return np.clip(scores, -_MAX_SCORE, _MAX_SCORE)


def k_means(points: np.ndarray, n_clusters: int, restarts: int = 20) -> np.ndarray:
    """The cluster of each of (N, F) points, the best of several runs from different centres; always the same.

    Returns:
        (N,) int64 from 0 on, the largest cluster first.
    """
    rng = np.random.default_rng(0)
    best, labels = np.inf, np.zeros(len(points), dtype=np.int64)
    for _ in range(restarts):
        centres = _first_centres(points, n_clusters, rng)
        for _ in range(100):
            distances = ((points[:, None] - centres[None]) ** 2).sum(axis=-1)
            nearest = distances.argmin(axis=1)
            means = [points[nearest == k].mean(axis=0) if (nearest == k).any() else c for k, c in enumerate(centres)]
            if np.allclose(means, centres):
                break
            centres = np.stack(means)
        if (total := distances.min(axis=1).sum()) < best - 1e-9:
            best, labels = total, nearest
    order = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    return np.argsort(order)[labels]


def _first_centres(points: np.ndarray, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Points far from each other (k-means++, Arthur and Vassilvitskii, SODA 2007)."""
    chosen = [int(rng.integers(len(points)))]
    while len(chosen) < n_clusters:
        distance = ((points[:, None] - points[chosen][None]) ** 2).sum(axis=-1).min(axis=1)
        chance = distance / distance.sum() if distance.sum() > 0 else None
        chosen.append(int(rng.choice(len(points), p=chance)))
    return points[chosen]


def clusters(features: list[dict[str, float]], n_clusters: int) -> tuple[np.ndarray, list[str]]:
    """The cluster of each image by its appearance, and each cluster in words.

    Args:
        features: for each image its `appearance`.
        n_clusters: number of clusters.
    """
    scores = standardised(np.array([[one[name] for name in FEATURES] for one in features]))
    weights = np.sqrt([feature.weight for feature in FEATURES.values()])
    labels = k_means(scores * weights, n_clusters)
    return labels, [in_words(scores[labels == k].mean(axis=0)) for k in range(n_clusters)]


def in_words(scores: np.ndarray, least: float = 0.4, most: int = 4) -> str:
    """What is unusual about images with these mean standardised features, with how many standard deviations."""
    names = list(FEATURES.values())
    order = [i for i in np.argsort(-np.abs(scores), kind="stable")[:most] if abs(scores[i]) >= least]
    words = [f"{names[i].high if scores[i] > 0 else names[i].low} ({scores[i]:+.1f})" for i in order]
    return ", ".join(words) or "average"

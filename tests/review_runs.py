"""Output folders like those of the scripts that predict, made without a network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from tests.conftest import ROOT
from utils.data.images import save_png
from utils.pipeline.summary import write_summary

SAMPLES = ROOT / "data" / "samples"
SAMPLE_NAMES = [f"SAMPLE_{i:02d}.jpg" for i in range(9)]


def sample_probabilities(i: int, spread: float = 6.0) -> np.ndarray:
    """A (384, 512) uint8 probability map of a built-in sample: its blurred ground truth, moved a little."""
    with Image.open(SAMPLES / "masks" / f"SAMPLE_{i:02d}_Segmentation.png") as mask:
        blurred = mask.convert("L").filter(ImageFilter.GaussianBlur(spread))
    return np.roll(np.asarray(blurred), 3 * i, axis=1)


def write_run(
    folder: Path,
    maps: Mapping[str, np.ndarray],
    settings: Mapping[str, Any] | None = None,
    layers: Mapping[str, np.ndarray] | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """An output folder of a predict_prob script or, with the settings of predict.py, of masks.

    Args:
        folder: is created.
        maps: the (H, W) uint8 content of NAME_OUT.png, by the names of the images.
        settings: of the journal, which lists the files, besides the method and the mask values.
        layers: further maps of every image, by the end of their names.
        scores: of some images; the soft Dice confidence of the k-th image is otherwise 0.5 + k / 100.
    """
    if settings is None:
        settings = {"method": "MC dropout, 4 passes", "class_index": 1, "ignore_value": None}
    settings = {"method": "softmax", "mask_values": [0, 255], **settings}
    rows, entries = [], []
    for k, (name, values) in enumerate(maps.items()):
        stem = folder / Path(name).with_suffix("")
        files = {"": values, **{f"_{end}": layer for end, layer in (layers or {}).items()}}
        paths = [stem.with_name(f"{stem.name}_OUT{end}.png") for end in files]
        for path, pixels in zip(paths, files.values(), strict=True):
            save_png(path, pixels)
        base = {"soft_dice_confidence": 0.5 + k / 100, "mean_entropy": 0.3 - k / 100, "area": int((values > 127).sum())}
        rows.append({"image": name, **base, **(scores or {}).get(name, {})})
        entries.append({"row": rows[-1], "files": [path.relative_to(folder).as_posix() for path in paths]})
    write_summary(folder / "summary.csv", rows)
    lines = [json.dumps(one) + "\n" for one in (settings, *entries)]
    (folder / ".progress-0.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def sample_run(folder: Path, spread: float = 6.0, **more: Any) -> Path:
    """A run on the nine built-in samples, of which the first is the least certain."""
    return write_run(folder, {name: sample_probabilities(i, spread) for i, name in enumerate(SAMPLE_NAMES)}, **more)

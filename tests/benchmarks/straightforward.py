"""The straightforward implementation: what one would write with the trained network and an afternoon.

`python tests/benchmarks/straightforward.py TASK IMGS OUT` predicts a folder, or its first images, one image after the
other, one pass or view at a time, each at full size; `speed.py` times it.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.reference import network_probability, tta_probability  # noqa: E402
from unet import draw_dropout_masks  # noqa: E402
from utils.checkpoint import load_model  # noqa: E402
from utils.runtime.seeds import derived_seed  # noqa: E402

PASSES = 20
TASKS = ("tta", "mc", "direct", "mask", "single")


def straightforward(task: str, paths: Sequence[Path], out: Path, device: str, amp: bool) -> None:
    """What a script does with some images; `single` is predict_bayesian.py with --save-prob."""
    network = load_model(ROOT / "pretrained_model.pth", device).network.to(memory_format=torch.contiguous_format)
    precision = torch.autocast(device, dtype=torch.bfloat16) if amp else nullcontext()
    out.mkdir(parents=True, exist_ok=True)

    def probability(image: Image.Image, masks: torch.Tensor | None = None) -> torch.Tensor:
        with precision:
            return network_probability(network, image, device, masks=masks).float().cpu()

    for path in paths:
        image = Image.open(path).convert("RGB")
        if task == "tta":
            probs = tta_probability(probability, image)
        elif task in ("mc", "single"):
            masks = draw_dropout_masks(network, PASSES, derived_seed(0, path.name)).to(device)
            passes = [probability(image, mask[None]) for mask in masks]
            if task == "single":
                stack = np.stack([[1 - p.numpy(), p.numpy()] for p in passes])  # (T, 2, H, W)
                np.save(out / f"{path.stem}_probs.npy", stack)
                for t, pass_probs in enumerate(stack):
                    for c, p in enumerate(pass_probs):
                        save(out / f"{path.stem}_mc{t:02d}_c{c}.png", p)
                probs = torch.from_numpy(save_uncertainty(out, path.stem, image, stack))
            else:
                probs = torch.stack(passes).mean(dim=0)
        else:
            probs = probability(image)
        if task in ("mask", "single"):
            probs = (probs > 0.5).float()
        save(out / (f"{path.stem}.png" if task == "single" else f"{path.stem}_OUT.png"), probs.numpy())


def save_uncertainty(out: Path, name: str, image: Image.Image, stack: np.ndarray) -> np.ndarray:
    """Greyscale maps of the statistics over the passes, (T, 2, H, W), and a figure; returns the mean of class 1."""
    import matplotlib.pyplot as plt

    mean = stack.mean(axis=0)  # (2, H, W)
    total, expected = entropy(mean), np.mean([entropy(pass_probs) for pass_probs in stack], axis=0)
    max_entropy = np.log(2)
    save(out / f"{name}_prob.png", mean[1])
    save(out / f"{name}_std.png", stack[:, 1].std(axis=0) / 0.5)
    save(out / f"{name}_entropy.png", total / max_entropy)
    save(out / f"{name}_expected_entropy.png", expected / max_entropy)
    save(out / f"{name}_mutual_information.png", (total - expected) / max_entropy)

    figure, axes = plt.subplots(1, 4, figsize=(14, 3), layout="constrained")
    axes[0].imshow(image)
    axes[1].imshow(mean[1] > 0.5)
    figure.colorbar(axes[2].imshow(mean[1], vmin=0, vmax=1), ax=axes[2])
    figure.colorbar(axes[3].imshow(total, vmin=0, vmax=max_entropy, cmap="inferno"), ax=axes[3])
    figure.savefig(out / f"{name}_panels.png", dpi=110)
    return mean[1]


def entropy(probs: np.ndarray) -> np.ndarray:
    """In nats, of (2, H, W)."""
    return -(probs * np.log(probs + 1e-12)).sum(axis=0)


def save(path: Path, probs: np.ndarray) -> None:
    Image.fromarray(np.round(probs.clip(0, 1) * 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("imgs", type=Path, help="folder of images")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    args = parser.parse_args()
    straightforward(args.task, sorted(args.imgs.iterdir())[: args.first], args.out, args.device, args.amp)

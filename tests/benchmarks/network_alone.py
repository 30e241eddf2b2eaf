"""The forward passes of a prediction and nothing else: the limit of every implementation that calls the network.

`python tests/benchmarks/network_alone.py TASK IMGS` prints the seconds that the forward passes of the task take for all
images of a folder: as PyTorch runs them and, with `--compile`, compiled (`nan` otherwise, and without a compiler).
Batches, dropout masks, precision and threads are those of the scripts; start-up, compilation and a first image are not
counted.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.straightforward import PASSES, TASKS  # noqa: E402
from utils.checkpoint import load_model  # noqa: E402
from utils.data.images import read_image  # noqa: E402
from utils.inference.compiled import compile_model  # noqa: E402
from utils.inference.samplers import MCDropout, Sampler, Softmax, TestTimeAugmentation  # noqa: E402
from utils.models import TrainedModel  # noqa: E402
from utils.runtime.device import amp_dtype, choose_device, mixed_precision  # noqa: E402
from utils.runtime.threads import limit_torch_threads, one_torch_thread, torch_thread_pool  # noqa: E402

Batch = tuple[Tensor, Tensor | None]  # inputs and dropout masks of a forward pass


def sampler_of(task: str, dtype: torch.dtype | None) -> Sampler:
    """The method of a task, as its script sets it up."""
    if task == "tta":
        return TestTimeAugmentation(dtype=dtype)
    if task == "mc":
        return MCDropout(dtype=dtype, num_samples=PASSES)
    if task == "single":
        return MCDropout(dtype=dtype, num_samples=PASSES).for_single_images()
    return Softmax(dtype=dtype)


def record_batches(model: TrainedModel, sampler: Sampler, image: Path, n_images: int) -> list[Batch]:
    """The batches of the forward passes by which an image, so many times in one batch, is predicted."""
    batches = []

    def record(x: Tensor, masks: Tensor | None) -> Tensor:
        batches.append((x, masks))
        return model.forward(x, masks)

    inputs = sampler.preprocess_image(read_image(image), model.input_size)
    sampler.sample(replace(model, compiled=record), [inputs] * n_images, [image.name] * n_images)
    return batches


def seconds_alone(model: TrainedModel, sampler: Sampler, batches: list[Batch], times: int, threads: int) -> float:
    """Seconds that the forward passes of the batches take, so many times, by so many threads."""
    device = model.device

    @torch.inference_mode()
    def work(remaining: Iterable[int]) -> None:
        for _ in remaining:
            for x, masks in batches:
                with mixed_precision(device, sampler.dtype):
                    model.forward(x, masks)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch_thread_pool(threads) as pool:
        list(pool.map(work, [range(1)] * threads))  # the first time takes longer
        started = time.perf_counter()
        list(pool.map(work, [iter(range(times))] * threads))  # the threads share one iterator
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("imgs", type=Path, help="folder of images")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument("--compile", action="store_true", help="also measure the compiled network")
    args = parser.parse_args()
    limit_torch_threads()
    device = choose_device(args.device)
    model = load_model(ROOT / "pretrained_model.pth", device)
    sampler = sampler_of(args.task, amp_dtype(device, args.amp))
    images = sorted(args.imgs.iterdir())
    per_batch = 1 if device.type == "cpu" else sampler.images_per_batch
    with nullcontext(1) if args.task == "single" else one_torch_thread(device) as threads:
        batches = record_batches(model, sampler, images[0], per_batch)
        times = math.ceil(len(images) / per_batch)
        seconds = seconds_alone(model, sampler, batches, times, threads)
        compiled = compile_model(model, sampler) if args.compile else model
        of_compiled = math.nan if compiled is model else seconds_alone(compiled, sampler, batches, times, threads)
    print(seconds, of_compiled)


if __name__ == "__main__":
    main()

"""Profile an epoch of training, or MC dropout of large images: where the time of the GPU and of the CPU goes.

`gpu.py` starts it as a process of its own, since a profiler slows down what comes after it.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from unet import BayesianUNet  # noqa: E402
from utils.checkpoint import DEFAULT_INPUT_SIZE, load_model  # noqa: E402
from utils.data.augmentation import TrainingTransforms  # noqa: E402
from utils.data.cache import decode_pairs  # noqa: E402
from utils.data.images import IMAGE_EXTENSIONS  # noqa: E402
from utils.data.pairing import pair_files  # noqa: E402
from utils.data_loading import SegmentationDataset, split_indices, training_batches  # noqa: E402
from utils.inference.maps import to_greyscale  # noqa: E402
from utils.inference.predictor import MapOptions  # noqa: E402
from utils.inference.samplers import MCDropout  # noqa: E402
from utils.pipeline.folder_predictor import FolderPredictor  # noqa: E402
from utils.pipeline.image_loop import ImageLoop  # noqa: E402
from utils.pipeline.items import find_items  # noqa: E402
from utils.runtime.device import amp_dtype, choose_device  # noqa: E402
from utils.runtime.threads import cores_per_process  # noqa: E402
from utils.training.batch_loss import BatchLoss  # noqa: E402
from utils.training.loop import train_one_epoch  # noqa: E402
from utils.training.state import new_training_state  # noqa: E402

LISTED = 10


def profile_training(imgs: Path, masks: Path, cache: Path, device: torch.device, most_steps: int) -> dict[str, Any]:
    """Time an epoch of the default training in mixed precision, and profile some steps of the next one."""
    decoded = decode_pairs(pair_files(imgs, masks), DEFAULT_INPUT_SIZE, cache)
    indices, _ = split_indices(len(decoded.pairs), 15, seed=0)
    dataset = SegmentationDataset(decoded, indices, decoded.mask_classes(2), TrainingTransforms("light"))
    batches = training_batches(dataset, 8, 0, min(8, cores_per_process()) if device.type == "cuda" else 0)
    network = BayesianUNet().to(device, memory_format=torch.channels_last)
    state = new_training_state(network, 1e-3, 3 * len(batches), amp_dtype(device, True))
    steps = min(len(batches), most_steps)

    def epoch() -> None:
        train_one_epoch(state, batches)
        state.complete_epoch({})

    epoch()  # warm-up
    seconds = timed(epoch, device)
    state.batch_loss = BatchLoss(network, state.dtype)  # a recording hides which operation a kernel is of
    operations = profiled(lambda: train_one_epoch(state, batches, stop=lambda: state.step + 1 == steps), device)
    timing = {"images": len(indices), "epoch, seconds": round(seconds, 3)}
    return timing | summary(operations, device.type == "cuda", steps, seconds / len(batches), "step")


def profile_prediction(imgs: Path, device: torch.device) -> dict[str, Any]:
    """Time and profile MC dropout with 50 passes in mixed precision on a folder, without writing the maps."""
    model = load_model(ROOT / "pretrained_model.pth", device)
    items = find_items(imgs, imgs.parent / "none", IMAGE_EXTENSIONS)
    sampler = MCDropout(dtype=amp_dtype(device, True), num_samples=50)
    options = MapOptions(greyscale_maps=lambda maps: {"_prob": to_greyscale(maps.probs[1])})

    def predict() -> None:
        FolderPredictor(model, sampler, lambda item, prediction: [], options).run(ImageLoop(items))

    predict()  # warm-up
    seconds = timed(predict, device)
    n = len(items)
    timing = {"images": n, "images per second": round(n / seconds, 2)}
    return timing | summary(profiled(predict, device), device.type == "cuda", n, seconds / n, "image")


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that a function takes, until the GPU has finished, too."""
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def profiled(function: Callable[[], object], device: torch.device) -> Sequence[Any]:
    """What the profiler has recorded of a function, in all threads."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch_profile(activities=activities, experimental_config=_ExperimentalConfig(profile_all_threads=True)) as run:
        timed(function, device)
    return run.events()


def summary(events: Sequence[Any], on_gpu: bool, units: int, seconds: float, unit: str) -> dict[str, Any]:
    """Sums over the events of a profile, per unit of work.

    Args:
        events: of `torch.autograd.profiler_util.FunctionEvent`.
        on_gpu: whether the network has run on a GPU; otherwise times of the CPU take the place of its times.
        units: number of steps or images in the profile.
        seconds: that a unit takes without the profiler.
        unit: the name of a unit.
    """
    operations = [event for event in events if event.device_type == DeviceType.CPU]
    names = {event.name for event in operations}  # an annotated one may appear again, as the span of its kernels
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and event.name not in names]
    of_cpu, of_gpu, of_kernels = Counter(), Counter(), Counter()
    for event in operations:
        of_cpu[event.name] += event.self_cpu_time_total
        of_gpu[event.name] += event.self_device_time_total  # the time of a kernel is that of its operation, too
    for event in kernels:
        of_kernels[event.name] += event.time_range.elapsed_us()
    of_device, device = (of_gpu, "GPU") if on_gpu else (of_cpu, "CPU")
    total = (of_kernels if on_gpu else of_cpu).total() or math.nan  # a profiler may see no kernels
    convolutions = sum(spent for name, spent in of_device.items() if "conv" in name)
    result: dict[str, Any] = {
        f"milliseconds per {unit}": round(1e3 * seconds, 3),
        f"{device} milliseconds per {unit}": round(total / units / 1e3, 3),
        f"fraction of {device} time in convolutions": round(convolutions / total, 4),
    }
    if on_gpu:
        launches = sum(not event.name.startswith(("Memcpy", "Memset")) for event in kernels)
        result["fraction of time in which the GPU is busy"] = round(busy_us(kernels) / units / (1e6 * seconds), 4)
        result["fraction of GPU time attributed to operations"] = round(of_gpu.total() / total, 4)
        result[f"kernels per {unit}"] = round(launches / units, 1)
        result["peak memory of the GPU, MB"] = torch.cuda.max_memory_reserved() // 2**20
        result[f"longest kernels, milliseconds per {unit}"] = longest(of_kernels, units)
    result[f"operations with most {device} time, milliseconds per {unit}"] = longest(of_device, units)
    if on_gpu:
        result[f"operations with most CPU time, milliseconds per {unit}"] = longest(of_cpu, units)
    return result


def busy_us(events: Sequence[Any]) -> float:
    """Microseconds in which at least one event runs."""
    busy, until = 0.0, float("-inf")
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in events):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def longest(times: Counter[str], units: int) -> list[dict[str, Any]]:
    """The names with most time, with milliseconds per unit and the fraction of the sum."""
    total = times.total() or math.nan
    return [
        {"name": name[:120], "milliseconds": round(spent / units / 1e3, 4), "fraction": round(spent / total, 4)}
        for name, spent in times.most_common(LISTED)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("training", "prediction"))
    parser.add_argument("--imgs", type=Path, required=True, help="folder of images")
    parser.add_argument("--masks", type=Path, help="folder of their masks, for training")
    parser.add_argument("--cache-dir", type=Path, help="where decoded images are kept, for training")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    parser.add_argument("--quick", action="store_true", help="profile two steps only")
    args = parser.parse_args()
    device = choose_device(args.device)
    if args.what == "training":
        result = profile_training(args.imgs, args.masks, args.cache_dir, device, 2 if args.quick else 30)
    else:
        result = profile_prediction(args.imgs, device)
    args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()

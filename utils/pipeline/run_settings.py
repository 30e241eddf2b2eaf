"""What every script that predicts records of its model, its method and its ground truth."""

from dataclasses import asdict
from typing import Any

from utils.checkpoint import TrainedModel
from utils.inference.guarantees import Guarantee
from utils.inference.samplers import Sampler, method_title
from utils.pipeline.ground_truth import GroundTruth


def run_settings(
    model: TrainedModel, sampler: Sampler, ground_truth: GroundTruth | None, guarantee: Guarantee | None = None
) -> dict[str, Any]:
    """Plain values by name that results with each other have alike, and that `utils.review_page.runs` reads.

    Without a ground truth no value is ignored yet, and what the model records of it helps to read masks that are
    compared later.
    """
    return {
        "method": method_title(sampler, model),
        **sampler.settings,
        "mask_values": list(model.mask_values),
        "model_ignore_value": model.ignore_value,
        "ignore_value": ground_truth.ignore_value if ground_truth else None,
        "white": model.white,
        "weights": model.fingerprint(),
        "guarantee": asdict(guarantee) if guarantee else None,
    }

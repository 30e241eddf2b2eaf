"""A model whose networks are compiled by `torch.compile`, for faster forward passes."""

import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from unet import BayesianUNet
from utils.checkpoint import TrainedModel
from utils.data.cache import DEFAULT_CACHE_DIR
from utils.inference.samplers import Sampler
from utils.runtime.errors import InputError, first_line, is_out_of_memory
from utils.runtime.output_folder import check_writable

logger = logging.getLogger(__name__)

_SURELY_PAYS = 10_000  # forward passes of each core
DEFAULT_COMPILER_CACHE = DEFAULT_CACHE_DIR.with_name(".compiled")


def compile_model(model: TrainedModel, sampler: Sampler, cache_dir: Path = DEFAULT_COMPILER_CACHE) -> TrainedModel:
    """The same model with compiled networks, for predictions by a method; as it is where there is no compiler.

    All compilation takes place here: batches have one size, and threads share what is compiled. Call it with
    as many PyTorch threads as the predictions.

    Args:
        model: the model.
        sampler: the method.
        cache_dir: where the code is kept, unless TORCHINDUCTOR_CACHE_DIR is set; if it cannot be written, PyTorch keeps
            the code in a temporary folder of its own.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with suppress(InputError):
            check_writable(cache_dir)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir)
    n = len(model.networks)
    networks = "the network," if n == 1 else f"{n} networks, each of"
    logger.info("Compiling %s which takes about six seconds, and twenty the first time", networks)
    inputs = sampler.preprocess_image(Image.new("RGB", model.input_size), model.input_size)
    n_images = 1 if model.device.type == "cpu" else sampler.images_per_batch
    try:
        with compiler_settings(model.device):
            members = tuple(replace(member, compiled=_compile(member.network)) for member in model.members)
            compiled = replace(model, members=members, compiled=None if members else _compile(model.network))
            sampler.sample(compiled, [inputs] * n_images, ["compilation"] * n_images)
    except Exception as error:  # whatever the compilers raise
        if is_out_of_memory(error):
            raise
        logger.debug("", exc_info=True)
        logger.warning("The network cannot be compiled here (%s): continuing without", first_line(error))
        return model
    return compiled


def compiling_pays(n_passes: int, device: torch.device, cores: int) -> bool:
    """Whether so many forward passes, by so many cores, are surely faster with a compiled network; known of CPUs only.

    Each pass of an input of 128x128 becomes about 7 ms faster, and the first compilation takes twenty seconds.
    """
    return device.type == "cpu" and n_passes >= _SURELY_PAYS * cores


@contextmanager
def compiler_settings(device: torch.device) -> Iterator[None]:
    """Networks are compiled in the `with` block, and none after it; for a CPU their weights are constants of the code.

    The option `freezing` of `torch.compile` itself comes too late: the weights are inputs of the graph by then.
    After the block PyTorch no longer checks that each call has run a graph, by a count that all threads share in some
    versions, so that calls failed by chance.
    """
    import torch._inductor.config

    torch.compiler.set_stance("default")
    try:
        with torch._inductor.config.patch(freezing=device.type == "cpu"):
            yield
    finally:
        torch.compiler.set_stance("fail_on_recompile")


class _Norm(nn.Module):
    """Batch norm in evaluation mode, as a scale and a shift of each channel."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        self.scale, self.shift = scale[:, None, None], (norm.bias - norm.running_mean * scale)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.shift).to(x.dtype)


@torch.no_grad()
def _compile(network: BayesianUNet) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The network, to be compiled when it is called, as a function of inputs and, for dropout, of (N, D) masks.

    Scales and shifts of batch norm are inputs, as the masks are: constant ones would be folded into the weights, whose
    rounding to bfloat16 then moves the maps by up to 17 grey levels.
    """
    own = copy.deepcopy(network).eval()
    for module in [*own.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _Norm(child))
    norm_layers = [module for module in own.modules() if isinstance(module, _Norm)]
    norms = [(norm.scale.clone(), norm.shift.clone()) for norm in norm_layers]

    def forward(x: Tensor, masks: Tensor | None, norms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        for layer, (scale, shift) in zip(norm_layers, norms, strict=True):
            layer.scale, layer.shift = scale, shift
        return own(x, masks)

    forward.__code__ = forward.__code__.replace()  # with several graphs of the same code, a thread can miss its own
    compiled = torch.compile(forward, fullgraph=True, dynamic=False)
    return lambda x, masks: compiled(x, masks, norms)

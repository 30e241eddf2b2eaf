"""The loss of a batch; on a CUDA GPU its kernels are recorded once and replayed."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unet import class_logits, use_dropout_masks
from utils.data.preprocessing import to_network_input
from utils.dice_score import segmentation_loss


class BatchLoss(nn.Module):
    """Forward pass and loss, as a module of the network's weights.

    Args:
        network: the network, whose dropout layers get the masks.
        parallel: the same network, wrapped for training in several processes.
        dtype: dtype of mixed precision; None for single precision.
    """

    def __init__(self, network: nn.Module, parallel: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network, self.parallel, self.dtype = network, parallel, dtype

    def forward(self, images: Tensor, target: Tensor, dropout: Tensor) -> Tensor:
        """The mean loss over the images; 0 without images, but with gradients.

        Args:
            images: (N, 3, h, w) uint8, on the network's device.
            target: (N, h, w) uint8 classes.
            dropout: (N, D) dropout masks.
        """
        x = to_network_input(images, images.device)
        # A recording must not contain what an earlier forward pass has cached; each weight is used once anyway.
        precision = torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False)
        with use_dropout_masks(self.network, dropout), precision:
            logits = class_logits(self.parallel(x))
        return segmentation_loss(logits, target) if len(images) else logits.sum()


class RecordedBatchLoss:
    """A `BatchLoss` that is recorded when a batch has the size of an earlier one, as all but an epoch's last one have.

    A step has hundreds of kernels, which a CPU launches more slowly than a GPU computes them. A recording, a CUDA
    graph, is launched as one. Batches of other sizes are computed as usual.

    Args:
        module: of which recordings are made.
        record: `torch.cuda.make_graphed_callables`, or None to record nothing.
    """

    def __init__(self, module: BatchLoss, record: Callable[..., Callable[..., Tensor]] | None) -> None:
        self._module, self._record = module, record
        self._recording: Callable[..., Tensor] | None = None
        self._sizes: set[int] = set()  # of earlier batches
        self._recorded_size: int | None = None

    def __call__(self, *batch: Tensor) -> Tensor:
        """The same as `BatchLoss.forward`."""
        size = len(batch[0])
        if self._record is not None and self._recording is None and size in self._sizes:
            self._recording, self._recorded_size = self._record_module(batch), size
        self._sizes.add(size)
        return (self._recording if size == self._recorded_size else self._module)(*batch)

    def _record_module(self, batch: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        """A recording; that it is tried out before does not change the running statistics of batch norm."""
        # The recording keeps nodes of its own stream alive, to which later gradients come from another one, in order.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
        module, buffers = self._module, list(self._module.buffers())
        before = [buffer.clone() for buffer in buffers]
        twin = BatchLoss(module.network, module.parallel, module.dtype)  # recording replaces the `forward` of a module
        recording = self._record(twin, tuple(tensor.clone() for tensor in batch))
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        return recording

"""The ground truth of a folder of images, and what predictions score against it."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np

from utils.data.class_rule import decide_classes
from utils.data.fitting import MaskFitter
from utils.data.mask_classes import MaskClasses, MaskOptions
from utils.data.mask_values import ValueCounts
from utils.data.masks import MaskRuns, RawMask, read_mask
from utils.data.pairing import find_masks
from utils.inference.predictor import Prediction
from utils.metrics.pixel_metrics import PIXEL_METRICS
from utils.metrics.segmentation import segmentation_scores
from utils.pipeline.items import Item, check_replaced
from utils.runtime import distributed
from utils.runtime.console import progress
from utils.runtime.errors import InputError
from utils.runtime.threads import cores_per_process

_MAX_KEPT = 2**28  # bytes of masks: more than ten thousand of 6 megapixels


class GroundTruth:
    """The ground-truth masks of some images. All are read first, to decide what their values mean, and kept as runs.

    Args:
        items: the images.
        mask_dir: folder of the masks, which are found as by `utils.data.pairing.find_masks`.
        recorded: what the model has recorded of the masks that it was trained on, see `decide_classes`.
        ignore_value: the value of pixels that do not count, if the user names one.
        mask_suffix: how the masks are named, see `PairingOptions`.

    Attributes:
        paths: the masks of each image that has any, by its name.
        fitter: what it says of the sizes of the masks.

    Raises:
        InputError: no image has a mask, the masks of one are ambiguous, or have values that belong to no class, or two
            images have one name.
    """

    def __init__(
        self,
        items: Sequence[Item],
        mask_dir: Path,
        recorded: MaskClasses,
        ignore_value: int | None = None,
        mask_suffix: str | None = None,
    ) -> None:
        self.mask_dir, self.n_classes = mask_dir, len(recorded.values)
        self.mask_classes = recorded
        images: dict[PurePath, Path] = {}
        for item in items:
            other = images.setdefault(item.name, item.path)
            if other.resolve() != item.path.resolve():
                raise InputError(
                    f"{other} and {item.path} have the same name, so that one mask in {mask_dir} would be that of "
                    "both: predict one of them at a time, with its own masks"
                )
        self.paths = find_masks(images, mask_dir, mask_suffix)
        self.fitter = MaskFitter()
        self._kept: dict[Path, MaskRuns] = {}
        counts = self._count_values([path for paths in self.paths.values() for path in paths])
        if counts:  # otherwise each mask fails when it is read
            self.mask_classes = decide_classes(counts, self.n_classes, MaskOptions(ignored=ignore_value), recorded)

    @property
    def ignore_value(self) -> int | None:
        """The value of pixels that do not count, if there is one."""
        return self.mask_classes.ignored

    def check_kept(self, outputs: Iterable[Path]) -> None:
        """Check that no result replaces a mask, see `check_replaced`.

        Raises:
            InputError: one does.
        """
        check_replaced(outputs, [path for paths in self.paths.values() for path in paths])

    def read(self, item: Item, shape: tuple[int, int]) -> np.ndarray | None:
        """The (H, W) uint8 classes of an image, `IGNORED_CLASS` for pixels that do not count; None without a mask.

        Raises:
            InputError: the mask cannot be read, or has another size.
        """
        paths, size = self.paths.get(item.name), shape[::-1]
        if paths is None:
            return None
        return self.mask_classes.unite([self.fitter.fit(path, self._read(path), size) for path in paths])

    def compare(self, target: np.ndarray, prediction: Prediction) -> dict[str, float]:
        """The scores of a prediction, of its probabilities if their pixels were counted.

        Args:
            target: (H, W) class indices of its image, from `read`.
            prediction: of the image.
        """
        scores = segmentation_scores(prediction.classes, target, self.n_classes)
        if (counts := prediction.counts) is not None:
            scores |= {name: float(metric(counts)) for name, metric in PIXEL_METRICS.items()}
        return scores | prediction.region_losses(target)

    def _count_values(self, paths: Sequence[Path]) -> dict[str, ValueCounts]:
        """The values of each readable mask, by its path; this process counts its share, and keeps these masks."""

        def count(path: Path) -> tuple[ValueCounts, MaskRuns] | None:
            try:
                runs = read_mask(path).runs()
            except InputError:  # reading it again will report why
                return None
            return runs.count(), runs

        share, counted, room = paths[distributed.rank() :: distributed.world_size()], {}, _MAX_KEPT
        with ThreadPoolExecutor(cores_per_process()) as pool:
            results = progress(pool.map(count, share), total=len(share), desc="Ground truth", unit="mask", leave=False)
            for path, result in zip(share, results, strict=True):
                if result is not None:
                    counted[str(path)], runs = result
                    room -= runs.nbytes
                    if room >= 0:
                        self._kept[path] = runs
        return distributed.merge_dicts(counted)

    def _read(self, path: Path) -> RawMask:
        return self._kept[path].to_mask() if path in self._kept else read_mask(path)

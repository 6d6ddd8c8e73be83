"""How well predicted outlines fit: Boundary IoU and boundary F1, of all classes in one pass over a picture.

Ignored pixels are unknown: they belong to no class, they count nowhere, and next to them nothing is a boundary. So an
outline that the labels hide is neither asked for nor held against a prediction.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.errors import ConfigError, DataError
from densekit.metrics.labels import VOID, check_classes, count_pairs, mean, narrow, plain, ratio

MAX_CLASSES = 254  # as uint8, with one value for what is no boundary and one for what is ignored


class BoundaryIoU:
    """IoU of the pixels near the outline of a class, over a whole data set.

    A pixel of a class counts if a pixel of another class, or of the outside of the picture, is at most d pixels away
    (largest of the row and column distances): d erosions by a 3 x 3 square would remove it. Unlike IoU, the figure does
    not rise with the size of things. Intersections and unions are summed over pictures, as `ConfusionMatrix` does.

    Args:
        num_classes: C, at most 254.
        ignore_index: A label whose pixels are unknown; see the head of this module.
        dilation: d as a share of each picture's diagonal, at least 1 pixel; 0.02 is the paper's for large objects.
        pixels: d in pixels, instead.

    Attributes:
        matrix: (C + 1, C + 1) int64: row: the class whose true boundary a pixel belongs to, C for none;
            column: the same of the prediction. Counts of several processes add up.

    Raises:
        ConfigError: impossible arguments.

    Source: Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, 2021, section 5; equal
        to the authors' code for two classes. They do not treat ignored pixels.
    """

    def __init__(
        self, num_classes: int, ignore_index: int | None = None, *, dilation: float = 0.02, pixels: int | None = None
    ) -> None:
        _check_few(num_classes, ignore_index)
        if not 0 < dilation < 1:
            raise ConfigError(f"dilation is {dilation}; expected a share of the diagonal between 0 and 1")
        if pixels is not None and pixels < 1:
            raise ConfigError(f"pixels is {pixels}; expected at least 1")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.dilation = dilation
        self.pixels = pixels
        self.matrix: NDArray[np.int64] = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)

    def update(self, prediction: Any, target: Any) -> None:
        """Counts one picture (H, W) or a batch (B, H, W) of class numbers, arrays or tensors.

        Raises:
            DataError: unequal shapes, not pictures, not integers, a value that is no class; nothing is counted then.
        """
        found, truth = narrow(prediction, target, self.num_classes, self.ignore_index)
        for one, other in zip(*(_pictures(labels) for labels in (found, truth)), strict=True):
            distance = self.pixels or max(1, round(self.dilation * math.hypot(*other.shape)))
            bands = [_boundary_classes(labels, distance, none=self.num_classes) for labels in (one, other)]
            self.matrix += count_pairs(bands[0], bands[1], self.num_classes + 1, None)

    def merge(self, other: BoundaryIoU) -> None:
        """Adds the counts of `other`, such as those of another process.

        Raises:
            ConfigError: `other` counts something else.
        """
        for name in ("num_classes", "ignore_index", "dilation", "pixels"):
            _check_same(name, getattr(self, name), getattr(other, name))
        self.matrix += other.matrix

    def iou(self) -> NDArray[np.float64]:
        """Returns the Boundary IoU of each class: (C,), NaN where neither side has such a boundary."""
        both = self.matrix.diagonal()
        either = np.asarray(self.matrix.sum(axis=0) + self.matrix.sum(axis=1)) - both
        return ratio(both, either)[: self.num_classes]

    def miou(self) -> float:
        """Returns the mean of `iou()` over the classes that have one; NaN before the first boundary."""
        return mean(self.iou())

    def figures(self) -> dict[str, Any]:
        """Returns every figure and the width it holds for, ready for JSON: None for NaN."""
        return {
            "boundary_miou": plain(self.miou()),
            "boundary_iou_per_class": plain(self.iou()),
            "boundary_width": f"{self.dilation:g} of the diagonal" if self.pixels is None else f"{self.pixels} px",
        }


class BoundaryF1:
    """F1 of contours that may miss each other by a few pixels, also called BF score.

    The contour of a class are its pixels that touch (by a side) a pixel of another class; the edge of the picture is
    none. A contour pixel is matched if the other side has one of the same class within the tolerance, by Euclidean
    distance. Precision is the matched share of the predicted contour, recall that of the true one.

    Args:
        num_classes: C, at most 254.
        ignore_index: A label whose pixels are unknown; see the head of this module.
        tolerance: In pixels; None for 0.75 % of each picture's diagonal.

    Attributes:
        counts: (4, C) int64: predicted contour pixels that are matched, and all; true ones that are, and all.
        sums: (C,) float64, the F1 of pictures added up; `pictures`: (C,) int64, the number of them.
            Both, and `counts`, add up over processes.

    Raises:
        ConfigError: impossible arguments.

    Source: Csurka et al., What is a good evaluation measure for semantic segmentation?, 2013, section 2. Ours: a
        distance equal to the tolerance matches (as in MATLAB's `bfscore`), and pictures are averaged class by class.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None, *, tolerance: float | None = None) -> None:
        _check_few(num_classes, ignore_index)
        if tolerance is not None and not 0 <= tolerance < math.inf:
            raise ConfigError(f"tolerance is {tolerance}; expected pixels, at least 0")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.tolerance = tolerance
        self.counts: NDArray[np.int64] = np.zeros((4, num_classes), dtype=np.int64)
        self.sums: NDArray[np.float64] = np.zeros(num_classes)
        self.pictures: NDArray[np.int64] = np.zeros(num_classes, dtype=np.int64)

    def update(self, prediction: Any, target: Any) -> None:
        """Counts one picture (H, W) or a batch (B, H, W) of class numbers, arrays or tensors.

        Raises:
            DataError: unequal shapes, not pictures, not integers, a value that is no class; nothing is counted then.
        """
        found, truth = narrow(prediction, target, self.num_classes, self.ignore_index)
        for one, other in zip(*(_pictures(labels) for labels in (found, truth)), strict=True):
            tolerance = 0.0075 * math.hypot(*other.shape) if self.tolerance is None else self.tolerance
            counts = _match_contours(one, other, self.num_classes, tolerance)
            matched_found, all_found, matched_true, all_true = counts
            self.counts += counts
            self.sums += np.nan_to_num(_f1(ratio(matched_found, all_found), ratio(matched_true, all_true)))
            self.pictures += all_found + all_true > 0

    def merge(self, other: BoundaryF1) -> None:
        """Adds the counts of `other`, such as those of another process.

        Raises:
            ConfigError: `other` counts something else.
        """
        for name in ("num_classes", "ignore_index", "tolerance"):
            _check_same(name, getattr(self, name), getattr(other, name))
        self.counts += other.counts
        self.sums += other.sums
        self.pictures += other.pictures

    def f1(self) -> NDArray[np.float64]:
        """Returns the F1 of each class, the mean over the pictures with a contour of it: (C,), NaN without one.

        A picture with a contour of the class on one side alone counts as 0.
        """
        return ratio(self.sums, self.pictures)

    def mean_f1(self) -> float:
        """Returns the mean of `f1()` over the classes that have one; NaN before the first contour."""
        return mean(self.f1())

    def precision(self) -> NDArray[np.float64]:
        """Returns the matched share of all pictures' predicted contours: (C,), NaN without one."""
        return ratio(self.counts[0], self.counts[1])

    def recall(self) -> NDArray[np.float64]:
        """Returns the matched share of all pictures' true contours: (C,), NaN without one."""
        return ratio(self.counts[2], self.counts[3])

    def pooled_f1(self) -> NDArray[np.float64]:
        """Returns the F1 of `precision()` and `recall()`, all pictures' contours together: (C,), NaN without one."""
        return np.where(self.counts[1] + self.counts[3] > 0, _f1(self.precision(), self.recall()), np.nan)

    def figures(self) -> dict[str, Any]:
        """Returns every figure and the tolerance it holds for, ready for JSON: None for NaN."""
        return {
            "boundary_f1": plain(self.mean_f1()),
            "boundary_f1_per_class": plain(self.f1()),
            "boundary_pooled_f1_per_class": plain(self.pooled_f1()),
            "boundary_precision_per_class": plain(self.precision()),
            "boundary_recall_per_class": plain(self.recall()),
            "boundary_tolerance": "0.0075 of the diagonal" if self.tolerance is None else f"{self.tolerance:g} px",
        }


def _check_few(num_classes: int, ignore_index: int | None) -> None:
    check_classes(num_classes, ignore_index)
    if num_classes > MAX_CLASSES:
        raise ConfigError(f"num_classes is {num_classes}; boundary figures go to {MAX_CLASSES} classes")


def _check_same(name: str, own: object, other: object) -> None:
    if own != other:
        raise ConfigError(f"cannot merge boundary counts with {name} {other} into some with {name} {own}")


def _pictures(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns (B, H, W) of (H, W) or (B, H, W)."""
    if labels.ndim not in (2, 3):
        raise DataError(f"found labels of shape {labels.shape}; expected (H, W) or (B, H, W)")
    return labels if labels.ndim == 3 else labels[None]


def _boundary_classes(labels: NDArray[np.uint8], distance: int, none: int) -> NDArray[np.uint8]:
    """Returns the class of each pixel within `distance` of its class's outline, `none` elsewhere: (H, W).

    A window of one class alone has one value as its smallest and largest: two passes serve all classes. VOID is larger
    than any class, so it has to be changed for the largest only.
    """
    import cv2

    if not labels.size:
        return labels
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    void = labels == VOID
    classes = labels * ~void  # 0 where void
    inside = cv2.erode(labels, window) == cv2.dilate(classes, window)  # what is outside the picture counts in neither
    inside[:distance] = inside[-distance:] = False
    inside[:, :distance] = inside[:, -distance:] = False
    return np.maximum(classes, (inside | void).view(np.uint8) * np.uint8(none))  # `none` is larger than any class


def _match_contours(
    found: NDArray[np.uint8], truth: NDArray[np.uint8], num_classes: int, tolerance: float
) -> NDArray[np.int64]:
    """Returns the rows of `BoundaryF1.counts` for one picture: (4, C).

    A pixel of a map of bits says for up to 64 classes at once whether their contour passes; widening a contour by the
    tolerance is then an OR of shifted maps, for all these classes together.
    """
    contours = [_contour(labels) for labels in (found, truth)]
    classes = [labels.ravel()[where] for labels, where in zip((found, truth), contours, strict=True)]
    counts = np.zeros((4, num_classes), dtype=np.int64)
    counts[1], counts[3] = (np.bincount(own, minlength=num_classes) for own in classes)
    for first in range(0, num_classes, 64):
        size = min(64, num_classes - first)
        dtype = np.uint16 if size <= 16 else np.uint32 if size <= 32 else np.uint64
        groups = [(own >= first) & (own < first + size) for own in classes]
        near = []
        for where, own, group in zip(contours, classes, groups, strict=True):
            bits = np.zeros(found.shape, dtype)
            bits.ravel()[where[group]] = np.left_shift(dtype(1), (own[group] - first).astype(dtype))
            near.append(_widen(bits, tolerance).ravel())
        for row, side, other in ((0, 0, 1), (2, 1, 0)):
            own = classes[side][groups[side]]
            is_matched = near[other][contours[side][groups[side]]] >> (own - first).astype(dtype) & dtype(1) > 0
            counts[row] += np.bincount(own[is_matched], minlength=num_classes)
    return counts


def _contour(labels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Returns the places, in the flat picture, of pixels with another class above, below, left or right."""
    contour = np.zeros(labels.shape, np.bool_)
    known = labels != VOID
    for one, other in (((slice(1, None),), (slice(-1),)), ((slice(None), slice(1, None)), (slice(None), slice(-1)))):
        differs = (labels[one] != labels[other]) & known[one] & known[other]
        contour[one] |= differs
        contour[other] |= differs
    return np.flatnonzero(contour)


def _widen(bits: NDArray[Any], tolerance: float) -> NDArray[Any]:
    """Returns the OR of all pixels within `tolerance` of each pixel, by Euclidean distance: (H, W).

    From the top row of the disk to its middle the rows get longer, so one row's OR grows into the next one's.
    """
    height, width = bits.shape
    square = math.floor(tolerance**2 + 1e-9)
    row = bits.copy()
    half = 0
    result = np.zeros_like(bits)
    for rise in range(math.isqrt(square), -1, -1):
        while half < math.isqrt(square - rise**2):
            half += 1
            if half < width:
                row[:, half:] |= bits[:, :-half]
                row[:, :-half] |= bits[:, half:]
        if rise < height:
            result[rise:] |= row[: height - rise]
            result[: height - rise] |= row[rise:]
    return result


def _f1(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the harmonic mean, 0 where one of them is 0 or has no value."""
    total = np.nan_to_num(precision) + np.nan_to_num(recall)
    product = np.nan_to_num(precision) * np.nan_to_num(recall)
    return np.divide(2 * product, total, out=np.zeros_like(total), where=total > 0)

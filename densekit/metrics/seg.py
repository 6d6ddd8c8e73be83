"""Segmentation figures, all of them from one matrix of counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.errors import ConfigError, DataError

CHUNK = 2**16  # pixels counted at once, so that what lies between steps stays in the cache


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over a whole data set, and the figures that follow from them.

    Figures are those of all pixels seen together (not means over pictures). A class that neither occurs nor is
    predicted has the figure NaN and is left out of means; a class that is predicted but does not occur counts as 0.
    A binary task has `num_classes` 2, and the foreground's figure is `iou()[1]`.

    Args:
        num_classes: C, the classes being 0 .. C - 1.
        ignore_index: A label whose pixels count nowhere, such as 255 or CamVid's 11; outside 0 .. C - 1.

    Attributes:
        matrix: (C, C) int64; row: the true class, column: the predicted one.

    Raises:
        ConfigError: fewer than 2 classes, or an `ignore_index` that is one of them.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        if num_classes < 2:
            raise ConfigError(f"num_classes is {num_classes}; expected at least 2 (a binary task has 2)")
        if ignore_index is not None and 0 <= ignore_index < num_classes:
            raise ConfigError(
                f"ignore_index {ignore_index} is one of the {num_classes} classes; expected another value"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix: NDArray[np.int64] = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, prediction: Any, target: Any) -> None:
        """Counts one picture or batch.

        Args:
            prediction: Class numbers, integers or booleans of any shape; a NumPy array or a torch tensor.
            target: Labels, same shape.

        Raises:
            DataError: unequal shapes, not integers, a prediction or a label that is no class; nothing is counted then.
        """
        prediction, target = _integers(prediction, "prediction"), _integers(target, "target")
        if prediction.shape != target.shape:
            raise DataError(
                f"found predictions of shape {prediction.shape} and labels of shape {target.shape}; "
                "expected equal shapes"
            )
        prediction, target = prediction.reshape(-1), target.reshape(-1)
        C = self.num_classes
        counts = np.zeros((C + 1) * C, dtype=np.int64)
        for start in range(0, target.size, CHUNK):
            part, labels = prediction[start : start + CHUNK], target[start : start + CHUNK]
            if part.min() < 0 or part.max() >= C:
                wrong = (prediction < 0) | (prediction >= C)
                raise DataError(f"found prediction {_describe(prediction, wrong)}; expected classes 0..{C - 1}")
            if self._is_no_label(labels).any():
                allowed = f"0..{C - 1}" + ("" if self.ignore_index is None else f", or {self.ignore_index} to ignore")
                raise DataError(f"found label {_describe(target, self._is_no_label(target))}; expected {allowed}")
            # one small number for each pixel: label * C + prediction, where ignored labels count as C
            code = labels.astype(np.uint8 if len(counts) <= 256 else np.int64)
            if self.ignore_index is not None:
                np.copyto(code, C, where=labels == self.ignore_index)
            np.multiply(code, C, out=code)
            np.add(code, part.astype(code.dtype, copy=False), out=code)
            counts += np.bincount(code, minlength=len(counts))
        self.matrix += counts[: C * C].reshape(C, C)

    def _is_no_label(self, target: NDArray[Any]) -> NDArray[np.bool_]:
        wrong: NDArray[np.bool_] = target >= self.num_classes
        if target.dtype.kind == "i":
            wrong |= target < 0
        if self.ignore_index is not None:
            wrong &= target != self.ignore_index
        return wrong

    def merge(self, other: ConfusionMatrix) -> None:
        """Adds the counts of `other`, such as those of another process.

        Raises:
            ConfigError: `other` has other classes or ignores another label.
        """
        if (self.num_classes, self.ignore_index) != (other.num_classes, other.ignore_index):
            raise ConfigError(
                f"cannot merge a matrix of {other.num_classes} classes ignoring {other.ignore_index} "
                f"into one of {self.num_classes} ignoring {self.ignore_index}"
            )
        self.matrix += other.matrix

    @property
    def valid_pixels(self) -> int:
        """The number of pixels counted, ignored ones left out."""
        return int(self.matrix.sum())

    def iou(self) -> NDArray[np.float64]:
        """Returns TP / (TP + FP + FN) of each class: (C,), NaN where the class neither occurs nor is predicted."""
        return _ratio(self._hits, self._labels + self._predictions - self._hits)

    def miou(self) -> float:
        """Returns the mean of `iou()` over the classes that have one; NaN before the first pixel."""
        return float(np.nanmean(self.iou())) if self.valid_pixels else math.nan

    def dice(self) -> NDArray[np.float64]:
        """Returns 2 TP / (2 TP + FP + FN) of each class, also called F1: (C,), NaN as in `iou`."""
        return _ratio(2 * self._hits, self._labels + self._predictions)

    def accuracy(self) -> float:
        """Returns the share of counted pixels whose class is right; NaN before the first pixel."""
        return int(self._hits.sum()) / self.valid_pixels if self.valid_pixels else math.nan

    def class_accuracy(self) -> NDArray[np.float64]:
        """Returns TP / (TP + FN) of each class, also called recall: (C,), NaN where the class does not occur."""
        return _ratio(self._hits, self._labels)

    @property
    def _hits(self) -> NDArray[np.int64]:
        return self.matrix.diagonal()

    @property
    def _labels(self) -> NDArray[np.int64]:
        return np.asarray(self.matrix.sum(axis=1))

    @property
    def _predictions(self) -> NDArray[np.int64]:
        return np.asarray(self.matrix.sum(axis=0))


def _integers(values: Any, name: str) -> NDArray[Any]:
    """Returns an integer array of what may be a tensor, without importing torch."""
    array = np.asarray(values.cpu().numpy() if hasattr(values, "cpu") else values)
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    if array.dtype.kind not in "iu":
        raise DataError(f"found a {name} of {array.dtype}; expected integers (take the argmax of scores first)")
    return array


def _describe(values: NDArray[Any], wrong: NDArray[np.bool_]) -> str:
    """Returns the smallest of the wrong values and how often it occurs, for a message."""
    found, counts = np.unique(values[wrong], return_counts=True)
    text = f"{found[0]} at {counts[0]} pixel" + ("s" if counts[0] > 1 else "")
    others = len(found) - 1
    return text + (f" and {others} more such value" + ("s" if others > 1 else "") if others else "")


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns part / whole of each class, NaN where whole is 0."""
    ratio = np.full(len(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio

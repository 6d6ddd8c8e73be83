"""Segmentation figures, all of them from one matrix of counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.errors import ConfigError
from densekit.metrics.labels import check_classes, count_pairs, mean, plain, ratio


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over a whole data set, and the figures that follow from them.

    Figures are those of all pixels seen together (not means over pictures). A class that neither occurs nor is
    predicted has the figure NaN and is left out of means; a class that is predicted but does not occur counts as 0.
    A binary task has `num_classes` 2, and the foreground's figure is `iou()[1]`.

    Args:
        num_classes: C, the classes being 0 .. C - 1.
        ignore_index: A label whose pixels count nowhere, such as 255 or CamVid's 11; outside 0 .. C - 1.

    Attributes:
        matrix: (C, C) int64; row: the true class, column: the predicted one. Counts of several processes add up:
            `torch.distributed.all_reduce(torch.from_numpy(matrix.matrix))` sums them in place.

    Raises:
        ConfigError: fewer than 2 classes, or an `ignore_index` that is one of them.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        check_classes(num_classes, ignore_index)
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
        self.matrix += count_pairs(prediction, target, self.num_classes, self.ignore_index)

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
        return ratio(self._hits, self._labels + self._predictions - self._hits)

    def miou(self) -> float:
        """Returns the mean of `iou()` over the classes that have one; NaN before the first pixel."""
        return mean(self.iou())

    def frequency_weighted_iou(self) -> float:
        """Returns the mean of `iou()` weighted by the pixels of each true class; NaN before the first pixel.

        Source: Long et al., Fully Convolutional Networks, 2015, section 5.
        """
        occurs = self._labels > 0
        weighted = self._labels[occurs] * self.iou()[occurs]
        return float(weighted.sum()) / self.valid_pixels if self.valid_pixels else math.nan

    def micro_iou(self) -> float:
        """Returns the IoU of all classes' pixels pooled, which is a / (2 - a) of the accuracy a, and no mean IoU.

        It is here to be told from `miou`: some tools print it as "IoU", and frequent classes make it look better.
        """
        accuracy = self.accuracy()
        return accuracy / (2 - accuracy)

    def dice(self) -> NDArray[np.float64]:
        """Returns 2 TP / (2 TP + FP + FN) of each class, also called F1: (C,), NaN as in `iou`."""
        return ratio(2 * self._hits, self._labels + self._predictions)

    def mean_dice(self) -> float:
        """Returns the mean of `dice()` over the classes that have one; NaN before the first pixel."""
        return mean(self.dice())

    def accuracy(self) -> float:
        """Returns the share of counted pixels whose class is right; NaN before the first pixel."""
        return int(self._hits.sum()) / self.valid_pixels if self.valid_pixels else math.nan

    def class_accuracy(self) -> NDArray[np.float64]:
        """Returns TP / (TP + FN) of each class, also called recall: (C,), NaN where the class does not occur."""
        return ratio(self._hits, self._labels)

    def mean_class_accuracy(self) -> float:
        """Returns the mean of `class_accuracy()` over the classes that occur; NaN before the first pixel."""
        return mean(self.class_accuracy())

    def precision(self) -> NDArray[np.float64]:
        """Returns TP / (TP + FP) of each class: (C,), NaN where the class is not predicted."""
        return ratio(self._hits, self._predictions)

    def kappa(self) -> float:
        """Returns Cohen's kappa: 1 for all right, 0 for no better than chance of the same class shares.

        NaN before the first pixel, and where chance alone is always right (a single class on both sides).
        """
        if not self.valid_pixels:
            return math.nan
        # as floats: a product of two counts may pass 2**63
        chance = float(self._labels / self.valid_pixels @ (self._predictions / self.valid_pixels))
        return (self.accuracy() - chance) / (1 - chance) if chance < 1 else math.nan

    def figures(self) -> dict[str, Any]:
        """Returns every figure by its full name, ready for JSON: numbers, lists with one entry a class, None for NaN.

        `classes_in_mean` is the number of classes that `miou` is the mean of.
        """
        figures = {
            "miou": self.miou(),
            "classes_in_mean": int(np.isfinite(self.iou()).sum()),
            "accuracy": self.accuracy(),
            "mean_class_accuracy": self.mean_class_accuracy(),
            "mean_dice": self.mean_dice(),
            "frequency_weighted_iou": self.frequency_weighted_iou(),
            "micro_iou": self.micro_iou(),
            "kappa": self.kappa(),
            "valid_pixels": self.valid_pixels,
            "iou_per_class": self.iou(),
            "dice_per_class": self.dice(),
            "accuracy_per_class": self.class_accuracy(),
            "precision_per_class": self.precision(),
            "pixels_per_class": self._labels,
        }
        return {name: plain(value) for name, value in figures.items()}

    @property
    def _hits(self) -> NDArray[np.int64]:
        return self.matrix.diagonal()

    @property
    def _labels(self) -> NDArray[np.int64]:
        return np.asarray(self.matrix.sum(axis=1))

    @property
    def _predictions(self) -> NDArray[np.int64]:
        return np.asarray(self.matrix.sum(axis=0))

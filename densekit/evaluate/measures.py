"""What is counted over the pictures of a segmentation, and the figures that follow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from densekit.evaluate.rules import Rule
from densekit.metrics import BoundaryF1, BoundaryIoU, Calibration, ConfusionMatrix, softmax

if TYPE_CHECKING:
    from torch import Tensor

SUMMARY = ("accuracy", "mean_class_accuracy", "mean_dice", "frequency_weighted_iou", "micro_iou", "kappa")
BOUNDARY = ("boundary_miou", "boundary_f1")
CALIBRATION = ("ece", "brier", "aurc")
TEMPERED = ("tempered_ece", "tempered_brier")


class Measures:
    """Counts over a set; every picture has a matrix of its own, too.

    Args:
        rule: of the protocol.
        calibration: whether to compare probabilities with how often the class is right.
        boundary: width of boundaries, and how far contours may miss each other, in pixels; None leaves them out.
        temperature: also compare the probabilities of logits divided by it, fitted on other pictures.

    Attributes:
        total: the confusion matrix of all pictures.
    """

    def __init__(
        self, rule: Rule, *, calibration: bool = False, boundary: int | None = None, temperature: float | None = None
    ) -> None:
        classes = (rule.num_classes, rule.ignore_index)
        self.rule = rule
        self.total: ConfusionMatrix = ConfusionMatrix(*classes)
        self._calibration = Calibration(*classes) if calibration else None
        self._temperature = temperature or 1.0
        self._tempered = Calibration(*classes) if temperature is not None else None
        self._boundary_iou = BoundaryIoU(*classes, pixels=boundary) if boundary else None
        self._boundary_f1 = BoundaryF1(*classes, tolerance=boundary) if boundary else None

    def add(self, ids: NDArray[Any], target: NDArray[Any], logits: Tensor | None) -> dict[str, float | None]:
        """Counts one picture, all of it or nothing, and returns its own figures.

        Args:
            ids: (H, W), predicted.
            target: (H, W).
            logits: (num_outputs, H, W), for calibration.

        Raises:
            DataError: a label or prediction that is no class.
        """
        own = ConfusionMatrix(self.rule.num_classes, self.rule.ignore_index)
        own.update(ids, target)  # refuses what is wrong before anything is counted
        self.total.merge(own)
        if self._boundary_iou and self._boundary_f1:
            self._boundary_iou.update(ids, target)
            self._boundary_f1.update(ids, target)
        if self._calibration and logits is not None:
            self._calibration.update(softmax(logits), target)
        if self._tempered and logits is not None:
            self._tempered.update(softmax(logits, self._temperature), target)
        return self._headline(own)

    def summary(self) -> dict[str, float | None]:
        """Returns the figures of the set, the headline first."""
        figures = self._all()
        return {
            **self._headline(self.total),
            **{key: figures[key] for key in (*SUMMARY, *BOUNDARY, *CALIBRATION, *TEMPERED) if key in figures},
        }

    def per_class(self) -> dict[str, list[float | None]]:
        """Returns the figures of each class; None where it does not occur."""
        figures = self._all()
        names = ("iou", "dice", "accuracy", "precision", "boundary_iou", "boundary_f1")
        return {name: figures[f"{name}_per_class"] for name in names if f"{name}_per_class" in figures}

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Returns curves to draw: confidence and accuracy, coverage and risk."""
        if not self._calibration:
            return {}
        curves = {"calibration": [(float(x), float(y)) for x, y, _ in self._calibration.curve()]}
        if self._tempered:
            curves["tempered-calibration"] = [(float(x), float(y)) for x, y, _ in self._tempered.curve()]
        return {**curves, "risk-coverage": [(float(x), float(y)) for x, y in self._calibration.risk_coverage()]}

    def conditions(self) -> dict[str, str]:
        """Returns what the figures were taken over."""
        figures = self._all()
        keys = ("valid_pixels", "classes_in_mean", "boundary_width", "boundary_tolerance", "ece_bins")
        return {key: str(figures[key]) for key in keys if key in figures}

    def _all(self) -> dict[str, Any]:
        figures = self.total.figures()
        for part in (self._boundary_iou, self._boundary_f1, self._calibration):
            figures |= part.figures() if part else {}
        if self._tempered:
            figures |= {f"tempered_{key}": value for key, value in self._tempered.figures().items()}
        return figures

    def _headline(self, matrix: ConfusionMatrix) -> dict[str, float | None]:
        figures = {self.rule.metric: self.rule.protocol.figure(matrix), "accuracy": matrix.accuracy()}
        return {key: None if math.isnan(value) else value for key, value in figures.items()}

"""How figures are named, written and ranked; the same in every kind of report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from densekit.report.evaluation import Evaluation, Row

# fmt: off
_WORDS = {
    "psnr": "PSNR", "ssim": "SSIM", "ms": "MS", "miou": "mIoU", "iou": "IoU", "dice": "Dice", "f1": "F1", "y": "Y",
    "lpips": "LPIPS", "dists": "DISTS", "niqe": "NIQE", "ece": "ECE", "nll": "NLL", "lr": "LR", "aurc": "AURC",
    "rmse": "RMSE", "mae": "MAE", "hd95": "HD95", "assd": "ASSD", "fps": "FPS",
}
_SMALLER_IS_BETTER = {
    "lpips", "dists", "niqe", "ece", "nll", "brier", "loss", "aurc", "rmse", "mae", "mse", "error", "hd95", "assd",
    "distance", "seconds",
}
# fmt: on
MISSING = "–"


@dataclass(frozen=True)
class Count:
    """How many pictures there are, and how many of them have figures."""

    measured: int
    total: int

    @property
    def is_complete(self) -> bool:
        return self.measured == self.total


def label(key: str) -> str:
    """Returns a figure's name as it is read: "mean_iou" -> "mean IoU", "psnr@rgb" -> "PSNR by rgb"."""
    name, _, protocol = key.partition("@")
    text = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return f"{text} by {protocol}" if protocol else text


def unit(key: str) -> str:
    """Returns a figure's unit, or an empty string."""
    words = _words(key)
    return "dB" if "psnr" in words else "s" if "seconds" in words else ""


def head(key: str) -> str:
    """Returns a figure's name with its unit, for the head of a column."""
    return f"{label(key)} ({unit(key)})" if unit(key) else label(key)


def show(key: str, value: float | None) -> str:
    """Returns a figure without its unit: PSNR with 2 decimals, shares with 4, an undefined one as a dash."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if unit(key):
        return f"{value:.2f}"
    if isinstance(value, int) or (abs(value) > 1 and float(value).is_integer()):
        return f"{int(value):,}"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.4g}"


def is_defined(value: float | None) -> bool:
    """Whether a figure has a value that can be drawn: not None, NaN or infinite."""
    return value is not None and math.isfinite(value)


def smaller_is_better(key: str) -> bool:
    """Whether a figure counts errors."""
    return not _SMALLER_IS_BETTER.isdisjoint(_words(key))


def rank(evaluation: Evaluation) -> list[int]:
    """Returns the indexes of the measured rows, worst first; rows without the headline figure come last.

    Equal figures keep the order of the data set.
    """
    sign = -1 if smaller_is_better(evaluation.metric) else 1

    def order(index: int) -> tuple[bool, float]:
        value = evaluation.rows[index].figures.get(evaluation.metric)
        return (True, 0.0) if value is None or math.isnan(value) else (False, sign * value)

    return sorted((index for index, row in enumerate(evaluation.rows) if not row.error), key=order)


def columns(evaluation: Evaluation) -> list[str]:
    """Returns the keys of the rows' figures, the headline first, the others in the order they come in."""
    keys = dict.fromkeys(key for row in evaluation.rows for key in row.figures)
    return [key for key in [evaluation.metric] if key in keys] + [key for key in keys if key != evaluation.metric]


def count(evaluation: Evaluation) -> Count:
    """Returns how many pictures there are, and how many could be measured."""
    return Count(sum(not row.error for row in evaluation.rows), len(evaluation.rows))


def basis(evaluation: Evaluation) -> str:
    """Returns what the headline was taken over: "mean of 4 of 5 pictures"; pixel counts are not means of pictures."""
    how = "mean of" if evaluation.matrix is None else "all pixels of"
    pictures = count(evaluation)
    return f"{how} {pictures.measured} of {pictures.total} picture{'s' if pictures.total != 1 else ''}"


def headline(evaluation: Evaluation) -> str:
    """Returns the headline figure with its unit, such as "31.45 dB"."""
    value = show(evaluation.metric, evaluation.summary.get(evaluation.metric))
    return f"{value} {unit(evaluation.metric)}".rstrip() if value != MISSING else MISSING


def protocol(evaluation: Evaluation) -> str:
    """Returns the protocol's name, or says that none is stated: a figure without one cannot be compared."""
    return evaluation.conditions.get("protocol") or "not stated"


def failed(evaluation: Evaluation) -> list[Row]:
    """Returns the rows that could not be measured."""
    return [row for row in evaluation.rows if row.error]


def _words(key: str) -> list[str]:
    return key.partition("@")[0].split("_")

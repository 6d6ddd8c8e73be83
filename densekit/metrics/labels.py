"""What every segmentation figure does first: take maps of class numbers, check them, count pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.errors import ConfigError, DataError

CHUNK = 2**22  # pixels counted at once; OpenCV's histogram is float32, which is exact below 2**24
SMALL = 2**16  # the same where several passes over a piece should stay in the cache
VOID = 255  # ignored pixels in `narrow`


def check_classes(num_classes: int, ignore_index: int | None) -> None:
    """Passes a number of classes and an ignored label that go together.

    Raises:
        ConfigError: fewer than 2 classes, or an `ignore_index` that is one of them.
    """
    if num_classes < 2:
        raise ConfigError(f"num_classes is {num_classes}; expected at least 2 (a binary task has 2)")
    if ignore_index is not None and 0 <= ignore_index < num_classes:
        raise ConfigError(f"ignore_index {ignore_index} is one of the {num_classes} classes; expected another value")


def as_array(values: Any) -> NDArray[Any]:
    """Returns an array of what may be a tensor, without importing torch."""
    if not hasattr(values, "cpu"):
        return np.asarray(values)
    tensor = values.detach().cpu()
    return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())


def as_labels(values: Any, name: str) -> NDArray[Any]:
    """Returns an integer array; booleans become uint8.

    Raises:
        DataError: neither integers nor booleans.
    """
    array = as_array(values)
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    if array.dtype.kind not in "iu":
        raise DataError(f"found a {name} of {array.dtype}; expected integers (take the argmax of scores first)")
    return array


def label_pair(prediction: Any, target: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns both as integer arrays of one shape.

    Raises:
        DataError: not integers, or unequal shapes.
    """
    prediction, target = as_labels(prediction, "prediction"), as_labels(target, "target")
    if prediction.shape != target.shape:
        raise DataError(
            f"found predictions of shape {prediction.shape} and labels of shape {target.shape}; expected equal shapes"
        )
    return prediction, target


def check_labels(prediction: NDArray[Any], target: NDArray[Any], num_classes: int, ignore_index: int | None) -> None:
    """Passes maps that hold nothing but classes and, in `target`, the ignored label.

    Raises:
        DataError: another value, named with the number of its pixels.
    """
    if prediction.size and (prediction.max() >= num_classes or prediction.min() < 0):
        wrong = (prediction < 0) | (prediction >= num_classes)
        raise DataError(f"found prediction {_describe(prediction, wrong)}; expected classes 0..{num_classes - 1}")
    wrong = target >= num_classes
    if target.dtype.kind == "i":
        wrong |= target < 0
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        allowed = f"0..{num_classes - 1}" + ("" if ignore_index is None else f", or {ignore_index} to ignore")
        raise DataError(f"found label {_describe(target, wrong)}; expected {allowed}")


def _describe(values: NDArray[Any], wrong: NDArray[np.bool_]) -> str:
    """Returns the smallest of the wrong values and how often it occurs, for a message."""
    found, counts = np.unique(values[wrong], return_counts=True)
    text = f"{found[0]} at {counts[0]} pixel" + ("s" if counts[0] > 1 else "")
    others = len(found) - 1
    return text + (f" and {others} more such value" + ("s" if others > 1 else "") if others else "")


def narrow(
    prediction: Any, target: Any, num_classes: int, ignore_index: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns both maps as uint8 of 0 .. C - 1, with `VOID` where the target is ignored, in both. At most 255 classes.

    Raises:
        DataError: as `label_pair` and `check_labels`.
    """
    prediction, target = label_pair(prediction, target)
    check_labels(prediction, target, num_classes, ignore_index)
    if ignore_index is None:
        return prediction.astype(np.uint8, copy=False), target.astype(np.uint8, copy=False)
    ignored = (target == ignore_index).view(np.uint8) * np.uint8(VOID)  # VOID has every bit, so OR writes it
    return prediction.astype(np.uint8, copy=False) | ignored, target.astype(np.uint8) | ignored


def count_pairs(prediction: Any, target: Any, num_classes: int, ignore_index: int | None) -> NDArray[np.int64]:
    """Returns how often each (label, prediction) pair occurs: (C, C) int64, row the label; ignored labels left out.

    Integers of any type and shape, at any strides; uint8 is fastest. OpenCV's two-dimensional histogram leaves out
    values beyond its range, so that ignored pixels cost no pass of their own, and what is missing from its sum tells
    whether a value was wrong. NumPy's `bincount`, which first widens every pixel to 8 bytes, is about half as fast.

    Raises:
        DataError: as `label_pair` and `check_labels`; nothing is counted then.
    """
    prediction, target = label_pair(prediction, target)
    flat_prediction, flat_target = prediction.reshape(-1), target.reshape(-1)
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    is_small = prediction.dtype == target.dtype == np.uint8
    step = CHUNK if is_small and num_classes <= 255 else SMALL
    for start in range(0, target.size, step):
        found, labels = flat_prediction[start : start + step], flat_target[start : start + step]
        counted = (_count if num_classes <= 255 else _count_many)(found, labels, num_classes, ignore_index)
        if counted is None:
            check_labels(prediction, target, num_classes, ignore_index)
            raise AssertionError("a value that is no class was counted, but none is found")
        counts += counted
    return counts


def _count(
    prediction: NDArray[Any], target: NDArray[Any], num_classes: int, ignore_index: int | None
) -> NDArray[np.int64] | None:
    """Returns the pairs of one piece, at most 255 classes; None where a value is neither a class nor ignored."""
    import cv2

    if prediction.dtype != np.uint8:
        if prediction.min() < 0 or prediction.max() >= num_classes:
            return None
        prediction = prediction.astype(np.uint8)
    ignored = 0 if ignore_index is None else np.count_nonzero(target == ignore_index)
    if target.dtype != np.uint8:
        is_class = (target >= 0) & (target < num_classes)
        target = np.where(is_class, target, VOID).astype(np.uint8)
    edges = [0, num_classes]
    counted: NDArray[np.float32] = cv2.calcHist(
        [target[None], prediction[None]], [0, 1], None, [num_classes] * 2, edges * 2
    )
    counts = counted.astype(np.int64)
    missing = target.size - counts.sum()
    if missing != ignored or (missing and prediction.max() >= num_classes):
        return None
    return counts


def _count_many(
    prediction: NDArray[Any], target: NDArray[Any], num_classes: int, ignore_index: int | None
) -> NDArray[np.int64] | None:
    """Does the same for any number of classes."""
    kept = target != (-1 if ignore_index is None else ignore_index)
    is_class = (target >= 0) & (target < num_classes)
    if prediction.min() < 0 or prediction.max() >= num_classes or (kept & ~is_class).any():
        return None
    code = target[is_class].astype(np.int64) * num_classes + prediction[is_class]
    return np.bincount(code, minlength=num_classes**2).reshape(num_classes, num_classes)


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Returns part / whole of each class, NaN where whole is 0."""
    result = np.full(len(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def mean(values: NDArray[np.float64]) -> float:
    """Returns the mean over the classes that have a figure; NaN where none has."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def plain(value: Any) -> Any:
    """Returns a float, int or list of them for JSON, None for NaN."""
    if isinstance(value, np.ndarray):
        return [plain(one) for one in value.tolist()]
    if isinstance(value, float) and value != value:
        return None
    return value

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from densekit.errors import ConfigError, DataError
from densekit.metrics import ConfusionMatrix

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")


def labels(num_classes: int, shape=(3, 200, 210), ignore_index: int | None = None, dtype=np.uint8, seed: int = 0):
    """(prediction, target): more pixels than are counted at once, three in four right."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, num_classes, shape)
    prediction = np.where(rng.random(shape) < 0.75, target, rng.integers(0, num_classes, shape)).astype(dtype)
    if ignore_index is not None:
        target[rng.random(shape) < 0.1] = ignore_index
    return prediction, target.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize(
    ("num_classes", "ignore_index"), [(2, None), (11, 11), (11, 255), (19, 255), (150, 255), (255, None)]
)
def test_all_figures_equal_those_of_scikit_learn(num_classes, ignore_index, dtype):
    prediction, target = labels(num_classes, ignore_index=ignore_index, dtype=dtype)
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(prediction, target)
    kept = target != (-1 if ignore_index is None else ignore_index)
    truth, found = target[kept], prediction[kept]
    assert matrix.matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix.matrix, confusion_matrix(truth, found, labels=range(num_classes)))
    np.testing.assert_allclose(matrix.iou(), jaccard_score(truth, found, average=None), rtol=1e-12)
    np.testing.assert_allclose(matrix.dice(), f1_score(truth, found, average=None), rtol=1e-12)
    np.testing.assert_allclose(matrix.class_accuracy(), recall_score(truth, found, average=None), rtol=1e-12)
    assert matrix.miou() == pytest.approx(jaccard_score(truth, found, average="macro"), rel=1e-12)
    assert matrix.accuracy() == pytest.approx(accuracy_score(truth, found), rel=1e-12)
    np.testing.assert_allclose(matrix.precision(), precision_score(truth, found, average=None), rtol=1e-12)
    assert matrix.mean_class_accuracy() == pytest.approx(balanced_accuracy_score(truth, found), rel=1e-12)
    assert matrix.mean_dice() == pytest.approx(f1_score(truth, found, average="macro"), rel=1e-12)
    assert matrix.kappa() == pytest.approx(cohen_kappa_score(truth, found), rel=1e-9)
    weighted, pooled = (jaccard_score(truth, found, average=kind) for kind in ("weighted", "micro"))
    assert matrix.frequency_weighted_iou() == pytest.approx(weighted, rel=1e-12)
    assert matrix.micro_iou() == pytest.approx(pooled, rel=1e-12)
    assert matrix.valid_pixels == kept.sum()


@needs_shared_data
def test_calling_all_of_camvid_road_scores_as_computed():
    matrix = ConfusionMatrix(num_classes=11, ignore_index=11)
    for path in sorted((SHARED / "camvid" / "valannot").glob("*.png")):
        with Image.open(path) as image:
            target = np.array(image)
        matrix.update(np.full_like(target, 3), target)
    assert matrix.valid_pixels == 17_155_529
    assert matrix.accuracy() == pytest.approx(0.294551, abs=5e-7)
    assert matrix.miou() == pytest.approx(0.026777, abs=5e-7)
    assert matrix.matrix.sum(axis=1).tolist() == [
        1601620, 4531180, 98499, 5053176, 1521751, 2851125, 155724, 537197, 304716, 113531, 387010,
    ]  # fmt: skip


def test_the_foreground_of_a_binary_task_is_class_1():
    matrix = ConfusionMatrix(num_classes=2)
    matrix.update(np.array([True, True, False, False, True]), np.array([1, 0, 1, 0, 1], dtype=np.uint8))
    assert matrix.matrix.tolist() == [[1, 1], [1, 2]]
    assert matrix.iou()[1] == 0.5


def test_a_class_that_is_nowhere_is_nan_and_left_out_of_the_mean():
    matrix = ConfusionMatrix(num_classes=4)
    matrix.update(np.array([0, 0, 1, 3]), np.array([0, 1, 1, 0]))
    np.testing.assert_array_equal(matrix.iou(), [1 / 3, 1 / 2, np.nan, 0])
    assert matrix.miou() == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)  # 3 is predicted though absent: it counts as 0
    np.testing.assert_array_equal(matrix.dice(), [1 / 2, 2 / 3, np.nan, 0])
    np.testing.assert_array_equal(matrix.class_accuracy(), [1 / 2, 1 / 2, np.nan, np.nan])


def test_the_mean_is_over_the_data_set_and_not_over_its_pictures():
    both, first, second = (ConfusionMatrix(2) for _ in range(3))
    pictures = [(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])), (np.array([1, 1, 0, 0]), np.array([1, 1, 1, 0]))]
    for matrix, (prediction, target) in zip((first, second), pictures, strict=True):
        matrix.update(prediction, target)
        both.update(prediction, target)
    assert both.miou() == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert both.miou() != pytest.approx((first.miou() + second.miou()) / 2)


@pytest.mark.parametrize("target", [None, np.full((4, 4), 255, dtype=np.uint8), np.empty((0, 4), dtype=np.uint8)])
def test_without_a_valid_pixel_every_figure_is_nan(target):
    matrix = ConfusionMatrix(num_classes=3, ignore_index=255)
    if target is not None:
        matrix.update(np.zeros_like(target), target)
    assert matrix.valid_pixels == 0
    assert np.isnan([matrix.iou(), matrix.dice(), matrix.class_accuracy(), matrix.precision()]).all()
    figures = matrix.figures()
    counts = [figures.pop(name) for name in ("valid_pixels", "classes_in_mean", "pixels_per_class")]
    assert counts == [0, 0, [0] * 3]
    assert all(value in (None, [None] * 3) for value in figures.values())


def test_merging_parts_gives_the_whole():
    prediction, target = labels(5, ignore_index=255)
    whole, part, other = (ConfusionMatrix(5, 255) for _ in range(3))
    whole.update(prediction, target)
    part.update(prediction[:1], target[:1])
    other.update(prediction[1:], target[1:])
    part.merge(other)
    np.testing.assert_array_equal(part.matrix, whole.matrix)


def test_counts_beyond_those_of_float32_stay_exact():
    matrix = ConfusionMatrix(2)
    matrix.matrix[1, 1] = 2**53
    matrix.update(np.array([1]), np.array([1]))
    assert matrix.valid_pixels == 2**53 + 1


@settings(max_examples=60, deadline=None)
@given(
    num_classes=st.sampled_from([2, 11, 255, 256, 300]),
    ignore_index=st.sampled_from([None, 255, -100, 400]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int16, np.int64]),
    shape=st.lists(st.integers(0, 5), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_pairs_of_any_type_shape_and_void_are_counted_one_by_one(num_classes, ignore_index, dtype, shape, seed):
    rng = np.random.default_rng(seed)
    ignore_index = None if ignore_index is not None and 0 <= ignore_index < num_classes else ignore_index
    top = min(num_classes - 1, np.iinfo(dtype).max)
    prediction = np.asarray(rng.integers(0, top + 1, shape)).astype(dtype)
    target = np.asarray(rng.integers(0, top + 1, shape)).astype(dtype)
    if ignore_index is not None and np.iinfo(dtype).min <= ignore_index <= np.iinfo(dtype).max:
        target = np.where(rng.random(shape) < 0.3, ignore_index, target).astype(dtype)
    expected = np.zeros((num_classes, num_classes), int)
    for label, found in zip(target.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if label != ignore_index:
            expected[label, found] += 1
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(prediction.T, target.T)
    np.testing.assert_array_equal(matrix.matrix, expected)


def test_large_constant_pictures_and_read_only_views_are_counted_exactly():
    """A histogram in float32 would stop at 2**24; pictures are counted in pieces below that."""
    target = np.ones((4100, 4100), np.uint8)
    target.flags.writeable = False
    matrix = ConfusionMatrix(2)
    matrix.update(target, target)
    matrix.update(target[::-2, 1::3], target[::-2, 1::3])
    assert matrix.matrix.tolist() == [[0, 0], [0, 4100**2 + 2050 * 1367]]


def test_a_wrong_prediction_under_void_is_refused_too():
    matrix = ConfusionMatrix(num_classes=3, ignore_index=255)
    with pytest.raises(DataError, match=r"found prediction 7 at 1 pixel; expected classes 0\.\.2$"):
        matrix.update(np.array([0, 7], np.uint8), np.array([0, 255], np.uint8))
    with pytest.raises(DataError, match=r"found prediction 255 at 1 pixel; expected classes 0\.\.2$"):
        matrix.update(np.array([255, 0], np.uint8), np.array([0, 255], np.uint8))
    assert matrix.valid_pixels == 0


def test_figures_are_plain_and_name_every_figure():
    matrix = ConfusionMatrix(num_classes=4)
    matrix.update(np.array([0, 0, 1, 3]), np.array([0, 1, 1, 0]))
    figures = matrix.figures()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["iou_per_class"] == [1 / 3, 1 / 2, None, 0]
    assert figures["accuracy_per_class"] == [1 / 2, 1 / 2, None, None]
    assert figures["precision_per_class"] == [1 / 2, 1, None, 0]
    assert figures["pixels_per_class"] == [2, 2, 0, 0]
    assert figures["classes_in_mean"] == 3
    assert figures["miou"] == pytest.approx(5 / 18)
    assert figures["frequency_weighted_iou"] == pytest.approx(5 / 12)
    assert figures["micro_iou"] == pytest.approx(1 / 3)
    assert figures["kappa"] == pytest.approx((0.5 - 0.375) / 0.625)


def test_kappa_of_a_constant_is_zero_and_that_of_one_class_alone_is_nan():
    matrix = ConfusionMatrix(num_classes=3)
    matrix.update(np.zeros(9, int), np.array([0, 1, 2] * 3))
    assert matrix.kappa() == pytest.approx(0)
    alone = ConfusionMatrix(num_classes=3)
    alone.update(np.zeros(9, int), np.zeros(9, int))
    assert math.isnan(alone.kappa())


def test_kappa_of_many_pixels_does_not_overflow():
    matrix = ConfusionMatrix(num_classes=2)
    matrix.matrix[:] = [[2**40, 2**38], [2**38, 2**40]]
    assert matrix.kappa() == pytest.approx(0.6)


def test_summing_the_matrix_of_several_processes_is_merging():
    prediction, target = labels(5, ignore_index=255)
    whole, part, other = (ConfusionMatrix(5, 255) for _ in range(3))
    whole.update(prediction, target)
    part.update(prediction[:1], target[:1])
    other.update(prediction[1:], target[1:])
    torch.from_numpy(part.matrix).add_(torch.from_numpy(other.matrix))  # in place, as all_reduce does
    assert part.figures() == whole.figures()


def test_tensors_count_like_arrays():
    prediction, target = labels(5, ignore_index=-100, dtype=np.int64)
    arrays, tensors = ConfusionMatrix(5, -100), ConfusionMatrix(5, -100)
    arrays.update(prediction, target)
    tensors.update(torch.from_numpy(prediction), torch.from_numpy(target).transpose(0, 1).contiguous().transpose(0, 1))
    np.testing.assert_array_equal(tensors.matrix, arrays.matrix)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_a_value_that_is_no_class_is_named_with_its_count_and_nothing_is_counted(dtype):
    matrix = ConfusionMatrix(num_classes=11, ignore_index=255)
    prediction, target = labels(11, ignore_index=255, dtype=dtype)
    bad = target.copy()
    bad[:, 0, 5:7] = 11  # in all three pictures, and so in several of the pieces counted at once
    with pytest.raises(DataError, match=r"found label 11 at 6 pixels; expected 0\.\.10, or 255 to ignore$"):
        matrix.update(prediction, bad)
    bad[2, 0, 0] = 77
    with pytest.raises(DataError, match="found label 11 at 6 pixels and 1 more such value; expected"):
        matrix.update(prediction, bad)
    wrong = prediction.copy()
    wrong[2, 199, 200:] = 12
    with pytest.raises(DataError, match=r"found prediction 12 at 10 pixels; expected classes 0\.\.10$"):
        matrix.update(wrong, target)
    assert matrix.valid_pixels == 0


def test_negative_values_are_no_classes():
    matrix = ConfusionMatrix(num_classes=2)
    with pytest.raises(DataError, match=r"found label -1 at 1 pixel; expected 0\.\.1$"):
        matrix.update(np.array([0, 1]), np.array([0, -1]))
    with pytest.raises(DataError, match="found prediction -1 at 1 pixel"):
        matrix.update(np.array([0, -1]), np.array([0, 1]))


def test_unequal_shapes_and_scores_are_refused():
    matrix = ConfusionMatrix(num_classes=2)
    with pytest.raises(
        DataError, match=r"found predictions of shape \(2, 3\) and labels of shape \(3, 2\); expected equal"
    ):
        matrix.update(np.ones((2, 3), dtype=int), np.ones((3, 2), dtype=int))
    with pytest.raises(DataError, match=r"found a prediction of float64; expected integers \(take the argmax"):
        matrix.update(np.ones(3), np.ones(3, dtype=int))


def test_impossible_matrices_are_refused():
    with pytest.raises(ConfigError, match=r"num_classes is 1; expected at least 2 \(a binary task has 2\)"):
        ConfusionMatrix(1)
    with pytest.raises(ConfigError, match="ignore_index 0 is one of the 11 classes; expected another value"):
        ConfusionMatrix(11, ignore_index=0)
    with pytest.raises(
        ConfigError, match="cannot merge a matrix of 3 classes ignoring None into one of 3 ignoring 255"
    ):
        ConfusionMatrix(3, 255).merge(ConfusionMatrix(3))

"""Boundary figures against brute force and against the authors' rule, class by class."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit.errors import ConfigError, DataError
from densekit.metrics import BoundaryF1, BoundaryIoU

VOID = 255


def maps(num_classes: int, height: int, width: int, seed: int, void_share: float = 0.0, block: int = 4):
    """(prediction, target): patches of classes, the target's shifted and with some other pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_classes, (height // block + 2, width // block + 2)).astype(np.uint8)
    patches = coarse.repeat(block, 0).repeat(block, 1)
    down, right = rng.integers(0, block, 2)
    prediction = patches[:height, :width].copy()
    target = patches[down : down + height, right : right + width].copy()
    noisy = rng.random((height, width)) < 0.03
    prediction[noisy] = rng.integers(0, num_classes, noisy.sum())
    target[rng.random((height, width)) < void_share] = VOID
    return prediction, target


def near_other_class(labels, known, row, column, distance):
    """Whether a known pixel of another class, or the outside, lies in the window around a pixel."""
    height, width = labels.shape
    for y in range(row - distance, row + distance + 1):
        for x in range(column - distance, column + distance + 1):
            if not (0 <= y < height and 0 <= x < width):
                return True
            if known[y, x] and labels[y, x] != labels[row, column]:
                return True
    return False


def boundary_iou_by_hand(prediction, target, num_classes, distance):
    known = target != VOID
    figures = []
    for number in range(num_classes):
        bands = []
        for labels in (prediction, target):
            band = np.zeros(labels.shape, bool)
            for row, column in np.argwhere(known & (labels == number)):
                band[row, column] = near_other_class(labels, known, row, column, distance)
            bands.append(band)
        either = (bands[0] | bands[1]).sum()
        figures.append((bands[0] & bands[1]).sum() / either if either else np.nan)
    return figures


def contour_by_hand(labels, known, number):
    points = []
    for row, column in np.argwhere(known & (labels == number)):
        for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]
            if inside and known[y, x] and labels[y, x] != number:
                points.append((row, column))
                break
    return points


def matches_by_hand(points, others, tolerance):
    return sum(any(math.hypot(a[0] - b[0], a[1] - b[1]) <= tolerance + 1e-9 for b in others) for a in points)


def counts_by_hand(prediction, target, num_classes, tolerance):
    known = target != VOID
    counts = np.zeros((4, num_classes), int)
    for number in range(num_classes):
        found, truth = (contour_by_hand(labels, known, number) for labels in (prediction, target))
        counts[:, number] = (
            matches_by_hand(found, truth, tolerance), len(found), matches_by_hand(truth, found, tolerance), len(truth),
        )  # fmt: skip
    return counts


@pytest.mark.parametrize("distance", [1, 2, 5, 40])
@pytest.mark.parametrize("void_share", [0.0, 0.2])
def test_boundary_iou_equals_brute_force(distance, void_share):
    prediction, target = maps(4, 17, 23, seed=distance, void_share=void_share)
    meter = BoundaryIoU(4, VOID, pixels=distance)
    meter.update(prediction, target)
    np.testing.assert_allclose(meter.iou(), boundary_iou_by_hand(prediction, target, 4, distance), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9), distance=st.integers(1, 4))
def test_boundary_iou_equals_brute_force_on_small_pictures_of_any_shape(seed, height, width, distance):
    prediction, target = maps(3, height, width, seed, void_share=0.3, block=2)
    meter = BoundaryIoU(3, VOID, pixels=distance)
    meter.update(prediction, target)
    np.testing.assert_allclose(meter.iou(), boundary_iou_by_hand(prediction, target, 3, distance), rtol=1e-12)


@pytest.mark.parametrize("dilation", [0.005, 0.02, 0.08])
def test_boundary_iou_of_two_classes_is_that_of_the_authors_erosions(dilation):
    prediction, target = maps(2, 90, 120, seed=3, block=17)
    distance = max(1, round(dilation * math.hypot(90, 120)))
    bands = []
    for mask in (prediction, target):  # as the paper's code: a frame of zeros, d erosions by 3 x 3, the difference
        framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
        bands.append(mask - eroded > 0)
    meter = BoundaryIoU(2, dilation=dilation)
    meter.update(prediction, target)
    assert 0 < meter.iou()[1] < 1
    assert meter.iou()[1] == pytest.approx((bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum(), rel=1e-12)


def test_boundary_iou_of_a_shifted_square_is_as_counted_by_hand():
    target = np.zeros((40, 40), np.uint8)
    target[10:20, 10:20] = 1
    meter = BoundaryIoU(2, pixels=1)
    meter.update(np.roll(target, 1, axis=1), target)
    # rings of 36 pixels; the shifted one shares 9 of each of the two rows, and no column
    assert meter.iou()[1] == 18 / (36 + 36 - 18)


def test_boundary_iou_does_not_reward_size_as_iou_does():
    figures = []
    for side in (20, 200):
        target = np.zeros((260, 260), np.uint8)
        target[20 : 20 + side, 20 : 20 + side] = 1
        meter = BoundaryIoU(2, pixels=5)
        meter.update(np.roll(target, 1, axis=1), target)
        figures.append(meter.iou()[1])
    assert abs(figures[0] - figures[1]) < 0.05


@pytest.mark.parametrize("tolerance", [0, 1, 2.5, 5**0.5, 7])
@pytest.mark.parametrize("void_share", [0.0, 0.2])
def test_contour_counts_equal_brute_force(tolerance, void_share):
    prediction, target = maps(5, 19, 22, seed=7, void_share=void_share)
    meter = BoundaryF1(5, VOID, tolerance=tolerance)
    meter.update(prediction, target)
    np.testing.assert_array_equal(meter.counts, counts_by_hand(prediction, target, 5, tolerance))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    tolerance=st.floats(0, 12, allow_nan=False),
)
def test_contour_counts_equal_brute_force_on_small_pictures_of_any_shape(seed, height, width, tolerance):
    prediction, target = maps(3, height, width, seed, void_share=0.2, block=2)
    meter = BoundaryF1(3, VOID, tolerance=tolerance)
    meter.update(prediction, target)
    np.testing.assert_array_equal(meter.counts, counts_by_hand(prediction, target, 3, tolerance))


@pytest.mark.parametrize("num_classes", [16, 17, 33, 70, 200, 254])
def test_contours_of_many_classes_are_told_apart(num_classes):
    prediction, target = maps(num_classes, 60, 60, seed=num_classes, block=6)
    meter = BoundaryF1(num_classes, tolerance=2)
    meter.update(prediction, target)
    for number in np.unique(target)[::7]:  # two classes at a time, through the same rule with one bit
        one = BoundaryF1(2, tolerance=2)
        one.update((prediction == number).astype(np.uint8), (target == number).astype(np.uint8))
        np.testing.assert_array_equal(meter.counts[:, number], one.counts[:, 1])


def test_f1_is_the_mean_over_pictures_and_pooled_f1_that_of_all_contours():
    good = np.zeros((20, 20), np.uint8)
    good[:, 10:] = 1
    bad = np.roll(good, 5, axis=1)
    bad[:, :5] = 0
    meter = BoundaryF1(3, tolerance=1)
    meter.update(np.stack([good, bad]), np.stack([good, good]))
    np.testing.assert_allclose(meter.f1(), [0.5, 0.5, np.nan])  # 1 and 0
    np.testing.assert_allclose(meter.pooled_f1(), [0.5, 0.5, np.nan])  # 20 of 40 contour pixels on both sides
    assert meter.mean_f1() == 0.5
    assert meter.figures()["boundary_f1_per_class"] == [0.5, 0.5, None]
    assert meter.figures()["boundary_tolerance"] == "1 px"


def test_a_class_on_one_side_alone_scores_zero():
    target = np.zeros((20, 20), np.uint8)
    prediction = target.copy()
    prediction[5:9, 5:9] = 1
    iou, f1 = BoundaryIoU(2, pixels=2), BoundaryF1(2, tolerance=2)
    for meter in (iou, f1):
        meter.update(prediction, target)
    assert iou.iou()[1] == 0
    np.testing.assert_array_equal(f1.f1(), [0, 0])  # class 0 has a contour in the prediction alone, too
    assert np.isnan(f1.recall()).all()
    np.testing.assert_array_equal(f1.pooled_f1(), [0, 0])


def test_the_default_tolerance_and_width_follow_the_diagonal():
    prediction, target = maps(3, 360, 480, seed=0, block=40)
    default, named = BoundaryF1(3), BoundaryF1(3, tolerance=4.5)  # 0.75 % of 600
    for meter in (default, named):
        meter.update(prediction, target)
    np.testing.assert_array_equal(default.counts, named.counts)
    assert default.figures()["boundary_tolerance"] == "0.0075 of the diagonal"
    default, named = BoundaryIoU(3), BoundaryIoU(3, pixels=12)  # 2 % of 600
    for meter in (default, named):
        meter.update(prediction, target)
    np.testing.assert_array_equal(default.matrix, named.matrix)
    assert [m.figures()["boundary_width"] for m in (default, named)] == ["0.02 of the diagonal", "12 px"]


@pytest.mark.parametrize("kind", [BoundaryIoU, BoundaryF1])
def test_a_perfect_prediction_scores_one_and_what_it_says_under_void_does_not_matter(kind):
    _, target = maps(5, 50, 60, seed=1, void_share=0.3, block=10)
    figures = []
    for fill in (0, 4):
        meter = kind(5, VOID)
        meter.update(np.where(target == VOID, fill, target), target)
        figures.append(meter.iou() if kind is BoundaryIoU else meter.f1())
    np.testing.assert_array_equal(figures[0], np.ones(5))
    np.testing.assert_array_equal(figures[1], np.ones(5))


@pytest.mark.parametrize("kind", [BoundaryIoU, BoundaryF1])
def test_any_void_id_any_integer_and_tensors_count_alike(kind):
    prediction, target = maps(4, 40, 50, seed=2, void_share=0.1, block=8)
    wide = np.where(target == VOID, -100, target.astype(np.int64))
    meters = [kind(4, VOID), kind(4, -100), kind(4, -100)]
    meters[0].update(prediction, target)
    meters[1].update(prediction.astype(np.int32), wide)
    meters[2].update(torch.from_numpy(prediction)[None].long(), torch.from_numpy(wide)[None])
    for meter in meters[1:]:
        assert meter.figures() == meters[0].figures()


@pytest.mark.parametrize("kind", [BoundaryIoU, BoundaryF1])
def test_merging_parts_gives_the_whole(kind):
    pictures = [maps(4, 40, 50, seed=seed, void_share=0.1, block=8) for seed in range(3)]
    whole, part, other = (kind(4, VOID) for _ in range(3))
    for number, (prediction, target) in enumerate(pictures):
        whole.update(prediction, target)
        (part if number else other).update(prediction, target)
    part.merge(other)
    assert part.figures() == whole.figures()


@pytest.mark.parametrize("kind", [BoundaryIoU, BoundaryF1])
@pytest.mark.parametrize("shape", [(0, 5), (3, 4), (2, 0, 4)])
def test_without_a_boundary_every_figure_is_nan(kind, shape):
    meter = kind(3, VOID)
    meter.update(np.zeros(shape, np.uint8), np.full(shape, VOID, np.uint8))
    per_class = next(value for name, value in meter.figures().items() if name.endswith("per_class"))
    assert per_class == [None] * 3
    assert math.isnan(meter.miou() if kind is BoundaryIoU else meter.mean_f1())


@pytest.mark.parametrize("kind", [BoundaryIoU, BoundaryF1])
def test_wrong_values_and_shapes_are_refused(kind):
    meter = kind(3, VOID)
    with pytest.raises(DataError, match=r"found labels of shape \(9,\); expected \(H, W\) or \(B, H, W\)$"):
        meter.update(np.zeros(9, np.uint8), np.zeros(9, np.uint8))
    with pytest.raises(DataError, match=r"found label 3 at 9 pixels; expected 0\.\.2, or 255 to ignore$"):
        meter.update(np.zeros((3, 3), np.uint8), np.full((3, 3), 3, np.uint8))
    with pytest.raises(DataError, match=r"found prediction 255 at 9 pixels; expected classes 0\.\.2$"):
        meter.update(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8))


def test_impossible_meters_are_refused():
    with pytest.raises(ConfigError, match=r"num_classes is 255; boundary figures go to 254 classes$"):
        BoundaryIoU(255)
    with pytest.raises(ConfigError, match=r"dilation is 2; expected a share of the diagonal between 0 and 1$"):
        BoundaryIoU(3, dilation=2)
    with pytest.raises(ConfigError, match=r"pixels is 0; expected at least 1$"):
        BoundaryIoU(3, pixels=0)
    with pytest.raises(ConfigError, match=r"tolerance is -1; expected pixels, at least 0$"):
        BoundaryF1(3, tolerance=-1)
    with pytest.raises(ConfigError, match=r"cannot merge boundary counts with pixels 3 into some with pixels None$"):
        BoundaryIoU(3).merge(BoundaryIoU(3, pixels=3))
    with pytest.raises(ConfigError, match=r"cannot merge boundary counts with tolerance 2 into some with tolerance 1$"):
        BoundaryF1(3, tolerance=1).merge(BoundaryF1(3, tolerance=2))

"""Where the figures of other tools differ from ours, and why: so that nobody compares them by their names."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from densekit.errors import DataError
from densekit.metrics import Calibration, ConfusionMatrix, softmax


def matrix_of(prediction, target, num_classes, ignore_index=None):
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(prediction, target)
    return matrix


def two_pictures():
    """(prediction, target): a large class everywhere, a small one that is found in the second picture alone."""
    target = np.zeros((2, 10, 10), np.uint8)
    target[0, :, :2] = 1
    target[1, :, :8] = 1
    prediction = np.zeros_like(target)
    prediction[1, :, :8] = 1
    return prediction, target


@pytest.fixture(scope="module")
def smp_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        return pytest.importorskip("segmentation_models_pytorch").metrics


def test_smps_counts_are_ours_but_its_micro_iou_is_no_mean_iou(smp_metrics):
    prediction, target = two_pictures()
    counts = smp_metrics.get_stats(
        torch.from_numpy(prediction).long(), torch.from_numpy(target).long(), mode="multiclass", num_classes=2
    )
    matrix = matrix_of(prediction, target, 2)
    assert counts[0].sum(0).tolist() == matrix.matrix.diagonal().tolist()
    micro = smp_metrics.iou_score(*counts, reduction="micro").item()
    assert micro == pytest.approx(matrix.micro_iou(), rel=1e-6)
    assert micro == pytest.approx(matrix.accuracy() / (2 - matrix.accuracy()), rel=1e-6)
    assert micro == pytest.approx(180 / 220)
    assert matrix.miou() == pytest.approx((100 / 120 + 80 / 100) / 2)
    macro = smp_metrics.iou_score(*counts, reduction="macro").item()
    assert macro == pytest.approx(matrix.miou(), rel=1e-6)  # equal, as long as every class occurs: see below


def test_smp_scores_an_absent_class_1_and_we_leave_it_out(smp_metrics):
    prediction, target = two_pictures()
    counts = smp_metrics.get_stats(
        torch.from_numpy(prediction).long(), torch.from_numpy(target).long(), mode="multiclass", num_classes=3
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        macro = smp_metrics.iou_score(*counts, reduction="macro").item()
    ours = matrix_of(prediction, target, 3).miou()
    assert macro == pytest.approx((2 * ours + 1) / 3, rel=1e-6)
    assert macro > ours


def test_smp_counts_a_label_that_is_no_class_as_wrong_and_we_refuse_it(smp_metrics):
    prediction, target = two_pictures()
    target[:, 0] = 255
    tensors = torch.from_numpy(prediction).long(), torch.from_numpy(target).long()
    counts = smp_metrics.get_stats(*tensors, mode="multiclass", num_classes=2)
    ignoring = smp_metrics.get_stats(*tensors, mode="multiclass", num_classes=2, ignore_index=255)
    ours = matrix_of(prediction, target, 2, 255)
    assert ignoring[0].sum(0).tolist() == counts[0].sum(0).tolist() == ours.matrix.diagonal().tolist()
    assert ignoring[1].sum(0).tolist() == (ours.matrix.sum(axis=0) - ours.matrix.diagonal()).tolist()
    assert counts[1].sum() == ignoring[1].sum() + 20  # the void pixels, as false positives
    with pytest.raises(DataError, match="found label 255 at 20 pixels"):
        matrix_of(prediction, target, 2)


def test_scikit_learn_means_over_the_labels_it_meets_and_scores_others_0_with_a_warning():
    prediction, target = (maps.ravel() for maps in two_pictures())
    ours = matrix_of(prediction, target, 3)
    assert jaccard_score(target, prediction, average="macro") == pytest.approx(ours.miou())
    with pytest.warns(UserWarning, match="ill-defined"):
        named = jaccard_score(target, prediction, labels=[0, 1, 2], average="macro")
    assert named == pytest.approx(ours.miou() * 2 / 3)
    assert np.isnan(ours.iou()[2])


def test_scikit_learn_agrees_that_a_predicted_but_absent_class_is_0():
    prediction, target = (maps.ravel() for maps in two_pictures())
    prediction[0] = 2
    ours = matrix_of(prediction, target, 3)
    assert ours.iou()[2] == 0
    assert ours.miou() == pytest.approx(jaccard_score(target, prediction, average="macro"))


def test_torchmetrics_mean_iou_averages_pictures_and_ours_the_data_set():
    segmentation = pytest.importorskip("torchmetrics.segmentation")
    prediction, target = (torch.from_numpy(maps).long() for maps in two_pictures())
    metric = segmentation.MeanIoU(num_classes=2, input_format="index")
    metric.update(prediction, target)
    per_picture = [matrix_of(p, t, 2).miou() for p, t in zip(*two_pictures(), strict=True)]
    assert metric.compute().item() == pytest.approx(np.mean(per_picture), rel=1e-6)
    assert metric.compute().item() == pytest.approx(0.7, rel=1e-6)
    assert matrix_of(*two_pictures(), 2).miou() == pytest.approx(49 / 60)


def test_torchmetrics_jaccard_index_is_ours():
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(0)
    target = rng.integers(0, 5, (2, 40, 50))
    prediction = np.where(rng.random(target.shape) < 0.7, target, rng.integers(0, 5, target.shape))
    target[rng.random(target.shape) < 0.1] = 255
    metric = classification.MulticlassJaccardIndex(5, average="macro", ignore_index=255)
    metric.update(torch.from_numpy(prediction), torch.from_numpy(target))
    ours = matrix_of(prediction, target, 5, 255)
    assert metric.compute().item() == pytest.approx(ours.miou(), rel=1e-6)


def test_torchmetrics_calibration_error_is_ours():
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(0, 2, (5, 40, 50)))
    target = np.where(rng.random((40, 50)) < 0.5, probabilities.argmax(axis=0), 0)
    metric = classification.MulticlassCalibrationError(5, n_bins=15, norm="l1")
    metric.update(torch.from_numpy(probabilities)[None], torch.from_numpy(target)[None])
    ours = Calibration(5)
    ours.update(probabilities, target)
    assert metric.compute().item() == pytest.approx(ours.ece(), abs=1e-6)

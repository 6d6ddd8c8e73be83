"""Calibration figures against brute force, closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from densekit.errors import ConfigError, DataError
from densekit.metrics import Calibration, fit_temperature, softmax


def drawn(shape=(5, 60, 70), spread=2.0, seed=0, dtype=np.float64):
    """(logits, target): labels drawn from the probabilities themselves, so a temperature of 1 is right."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, shape)
    probabilities = softmax(logits)
    target = (rng.random(shape[1:]) > probabilities.cumsum(axis=0)).sum(axis=0).clip(0, shape[0] - 1)
    return logits.astype(dtype), target.astype(np.uint8)


def counted(probabilities, target, **options):
    meter = Calibration(max(len(probabilities), 2), **options)
    meter.update(probabilities, target)
    return meter


def ece_by_hand(confidence, is_right, bins):
    total = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(is_right[inside].mean() - confidence[inside].mean())
    return total


def aurc_by_hand(confidence, is_right):
    wrong = ~is_right[np.argsort(-confidence, kind="stable")]
    return float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean())


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_brute_force(bins):
    logits, target = drawn(spread=3)
    probabilities = softmax(logits * 1.7)  # too sure
    meter = counted(probabilities, target, bins=bins)
    confidence, is_right = probabilities.max(axis=0).ravel(), (probabilities.argmax(axis=0) == target).ravel()
    assert meter.ece() == pytest.approx(ece_by_hand(confidence, is_right, bins), rel=1e-12)
    assert meter.ece() > 0.03
    assert meter.valid_pixels == target.size


def test_the_curve_is_that_of_scikit_learn():
    logits, target = drawn((2, 90, 80))
    probabilities = softmax(logits * 2)
    curve = counted(probabilities, target, bins=10).curve()
    is_right = (probabilities.argmax(axis=0) == target).ravel()
    accuracy, confidence = calibration_curve(is_right, probabilities.max(axis=0).ravel(), n_bins=10)
    np.testing.assert_allclose(curve[:, 0], confidence, rtol=1e-12)
    np.testing.assert_allclose(curve[:, 1], accuracy, rtol=1e-12)
    assert curve[:, 2].sum() == pytest.approx(1)
    assert len(curve) == 5  # two classes: no confidence below a half, and empty bins are left out


def test_the_brier_score_is_that_of_scikit_learn():
    logits, target = drawn()
    probabilities = softmax(logits)
    flat = probabilities.reshape(5, -1).T
    expected = brier_score_loss(target.ravel(), flat, scale_by_half=False)
    assert counted(probabilities, target).brier() == pytest.approx(expected, rel=1e-12)


def test_the_brier_score_of_two_classes_is_twice_that_of_one():
    logits, target = drawn((2, 40, 50))
    probabilities = softmax(logits)
    expected = 2 * brier_score_loss(target.ravel(), probabilities[1].ravel())
    assert counted(probabilities, target).brier() == pytest.approx(expected, rel=1e-12)
    alone = counted(probabilities[1:], target)
    assert alone.brier() == pytest.approx(expected, rel=1e-12)
    assert alone.ece() == pytest.approx(counted(probabilities, target).ece(), rel=1e-9)


def test_known_probabilities_have_the_figures_of_their_closed_forms():
    target = np.zeros((10, 10), np.uint8)
    target[:3] = 1  # 7 in 10 are class 0
    constant = np.stack([np.full((10, 10), 0.9), np.full((10, 10), 0.1)])
    meter = counted(constant, target)
    assert meter.ece() == pytest.approx(0.9 - 0.7)
    assert meter.brier() == pytest.approx(0.7 * 2 * 0.1**2 + 0.3 * 2 * 0.9**2)
    assert meter.aurc() == pytest.approx(0.3)  # nothing tells one pixel from another
    np.testing.assert_allclose(meter.risk_coverage(5)[:, 1], 0.3)
    sure = counted(np.stack([target == 0, target == 1]).astype(float), target)
    assert (sure.ece(), sure.brier(), sure.aurc()) == (0, 0, 0)
    wrong = counted(np.stack([target == 1, target == 0]).astype(float), target)
    assert (wrong.ece(), wrong.brier(), wrong.aurc()) == (1, 2, 1)


def test_the_area_under_risk_and_coverage_equals_brute_force():
    logits, target = drawn((5, 100, 120), seed=4)
    probabilities = softmax(logits)
    confidence, is_right = probabilities.max(axis=0).ravel(), (probabilities.argmax(axis=0) == target).ravel()
    meter = counted(probabilities, target)
    assert meter.aurc() == pytest.approx(aurc_by_hand(confidence, is_right), rel=1e-4)  # ranks are 0.1 % of doubt wide
    wrong = np.cumsum(~is_right[np.argsort(-confidence)])
    for coverage, risk in meter.risk_coverage(11)[1:]:
        kept = round(coverage * len(wrong))
        assert risk == pytest.approx(wrong[kept - 1] / kept, abs=2e-4)


def test_sure_pixels_are_told_apart_down_to_the_last_bit_of_single_precision():
    doubt = np.array([2.0**-24, 2.0**-23, 2.0**-20, 1e-5, 1e-3, 0.01], dtype=np.float32).reshape(1, -1)
    probabilities = np.stack([1 - doubt, doubt])
    target = np.array([[0, 1, 0, 0, 0, 1]], np.uint8)
    expected = (0 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 2 / 6) / 6
    assert counted(probabilities, target).aurc() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@example(groups=[(59, 0.0), (198, 1.0)], seed=0)  # sums of 1/n on both sides of where they become a series
@given(
    groups=st.lists(st.tuples(st.integers(0, 400), st.floats(0, 1)), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_pixels_of_equal_confidence_count_by_the_mean_over_their_orders(groups, seed):
    rng = np.random.default_rng(seed)
    meter = Calibration(2)
    expected_wrong = []
    for place, (size, share) in enumerate(groups):  # surest first
        wrong = rng.random(size) < share
        probability = np.full((1, size), 1 - 2.0 ** -(15 - 2 * place))
        meter.update(np.stack([probability, 1 - probability]), wrong[None].astype(np.uint8))
        expected_wrong.extend([wrong.mean()] * size if size else [])
    if expected_wrong:  # by linearity the mean over orders has the mean wrongness in each place
        expected = (np.cumsum(expected_wrong) / np.arange(1, len(expected_wrong) + 1)).mean()
        assert meter.aurc() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    else:
        assert math.isnan(meter.aurc())


def test_a_tie_goes_to_the_first_class_as_argmax_does():
    probabilities = np.array([0.25, 0.5, 0.5, 0.4, 0.5, 0.5, 0.35, 0, 0]).reshape(3, 1, 3)
    assert counted(probabilities, np.array([[0, 0, 0]], np.uint8)).right.sum() == 2
    assert counted(probabilities, np.array([[1, 1, 1]], np.uint8)).right.sum() == 1


def test_ignored_pixels_count_nowhere():
    logits, target = drawn()
    probabilities = softmax(logits)
    void = np.random.default_rng(1).random(target.shape) < 0.3
    masked, spoilt = np.where(void, 255, target).astype(np.uint8), probabilities.copy()
    spoilt[:, void] = np.nan
    meter = counted(spoilt, masked, ignore_index=255)
    kept = counted(probabilities[:, ~void][:, None], target[~void][None])
    assert meter.figures() == kept.figures()
    assert meter.valid_pixels == (~void).sum()


def test_merged_parts_pictures_one_by_one_and_tensors_give_the_whole():
    logits, target = drawn((5, 60, 70), dtype=np.float32)
    probabilities = torch.from_numpy(softmax(logits)).float()
    whole, part, other = (Calibration(5, 255) for _ in range(3))
    whole.update(probabilities.numpy(), target)
    part.update(probabilities[:, :20], torch.from_numpy(target[:20]).long())
    other.update(probabilities[:, 20:], torch.from_numpy(target[20:]).long())
    part.merge(other)
    assert part.ece() == pytest.approx(whole.ece(), rel=1e-12)
    assert part.brier() == pytest.approx(whole.brier(), rel=1e-12)
    assert part.aurc() == whole.aurc()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_of_half_precision_are_accepted(dtype):
    logits, target = drawn((11, 60, 70))
    exact = softmax(logits)
    meter = counted(torch.from_numpy(exact).to(dtype), target)
    assert meter.ece() == pytest.approx(counted(exact, target).ece(), abs=4e-3)


def test_without_a_pixel_every_figure_is_nan_and_none_in_json():
    meter = Calibration(3, 255)
    meter.update(np.full((3, 2, 2), 1 / 3), np.full((2, 2), 255))
    assert all(math.isnan(value) for value in (meter.ece(), meter.brier(), meter.aurc()))
    assert meter.figures() == {
        "ece": None, "ece_bins": 15, "brier": None, "aurc": None, "calibration_curve": [], "risk_coverage_curve": [],
    }  # fmt: skip


def test_what_is_no_probability_is_refused():
    target = np.zeros((2, 2), np.uint8)
    meter = Calibration(3)
    with pytest.raises(DataError, match=r"found probabilities from -2 to 3; expected 0 to 1 \(apply a softmax\)$"):
        meter.update(np.array([3.0, 0, -2]).repeat(4).reshape(3, 2, 2), target)
    with pytest.raises(DataError, match="found probabilities from nan to nan; expected 0 to 1"):
        meter.update(np.full((3, 2, 2), np.nan), target)
    with pytest.raises(DataError, match=r"found probabilities that add up to 0.6; expected 1 \(apply a softmax\)$"):
        meter.update(np.full((3, 2, 2), 0.2), target)
    with pytest.raises(DataError, match=r"found probabilities of int64; expected floats$"):
        meter.update(np.ones((3, 2, 2), dtype=int), target)
    with pytest.raises(
        DataError,
        match=r"of shape \(2, 2, 2\) and labels of shape \(2, 2\); expected \(3, H, W\) and \(H, W\)$",
    ):
        meter.update(np.ones((2, 2, 2)), target)
    with pytest.raises(DataError, match=r"found probabilities of shape \(1, 2, 2\)"):
        meter.update(np.ones((1, 2, 2)), target)
    with pytest.raises(DataError, match=r"found label 3 at 4 pixels; expected 0\.\.2$"):
        meter.update(np.full((3, 2, 2), 1 / 3), target + 3)
    assert meter.valid_pixels == 0
    with pytest.raises(ConfigError, match=r"bins is 0; expected at least 1$"):
        Calibration(3, bins=0)
    with pytest.raises(ConfigError, match=r"cannot merge calibration counts with bins 10 into some with bins 15$"):
        meter.merge(Calibration(3, bins=10))


def test_softmax_equals_that_of_torch_and_a_single_logit_is_a_sigmoid():
    logits = np.random.default_rng(0).normal(0, 300, (4, 5, 6))
    tensor = torch.from_numpy(logits)
    np.testing.assert_allclose(softmax(logits, 2.5), torch.softmax(tensor / 2.5, dim=0), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(softmax(tensor[:1], 2.5), torch.sigmoid(tensor[:1] / 2.5), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_fitted_temperature_is_the_one_the_labels_were_drawn_with(temperature):
    logits, target = drawn((5, 200, 200))
    fitted = fit_temperature([(logits * temperature, target)])
    assert fitted == pytest.approx(temperature, rel=0.03)  # 40,000 draws


def test_the_fitted_temperature_has_the_least_loss_by_scikit_learn():
    logits, target = drawn((4, 50, 50), spread=3, seed=2)
    logits *= 2
    fitted = fit_temperature([(logits, target)])

    def loss(temperature):
        return log_loss(target.ravel(), softmax(logits, temperature).reshape(4, -1).T, labels=range(4))

    assert loss(fitted) < min(loss(fitted * 1.001), loss(fitted / 1.001), loss(1.0))


def test_two_logits_and_two_pixels_have_the_temperature_of_the_closed_form():
    # three of four pixels right at a margin of 2: sigmoid(2 / T) = 3 / 4, so T = 2 / log 3
    logits = np.stack([np.full((1, 4), 2.0), np.zeros((1, 4))])
    target = np.array([[0, 0, 0, 1]], np.uint8)
    assert fit_temperature([(logits, target)]) == pytest.approx(2 / math.log(3), rel=1e-8)
    foreground = np.array([[[-2.0, -2, -2, -2]]])
    assert fit_temperature([(foreground, target)]) == pytest.approx(2 / math.log(3), rel=1e-8)


def test_logarithms_of_probabilities_serve_as_logits():
    logits, target = drawn((3, 40, 40))
    expected = fit_temperature([(logits * 3, target)])
    assert fit_temperature([(np.log(softmax(logits * 3)), target)]) == pytest.approx(expected, rel=1e-8)


def test_fitting_makes_an_overconfident_network_calibrated_on_other_pictures():
    logits, target = drawn((11, 300, 200), spread=2, seed=0)
    logits *= 2.5
    temperature = fit_temperature([(logits[:, :150], target[:150])])
    before = counted(softmax(logits[:, 150:]), target[150:]).ece()
    after = counted(softmax(logits[:, 150:], temperature), target[150:]).ece()
    assert before > 0.1
    assert after < 0.02


def test_the_sample_is_bounded_equal_each_time_and_independent_of_how_pixels_are_dealt():
    logits, target = drawn((3, 300, 100))
    logits *= 2
    rows = [(logits[:, row : row + 7], target[row : row + 7]) for row in range(0, 300, 7)]
    halves = [(logits[:, :150], target[:150]), (logits[:, 150:], target[150:])]
    few = [fit_temperature(iter(pictures), max_pixels=2000) for pictures in (rows, halves, [(logits, target)])]
    assert few[0] == pytest.approx(few[1], rel=1e-12)
    assert few[0] == pytest.approx(few[2], rel=1e-12)
    assert few[0] == pytest.approx(fit_temperature(rows), rel=0.1)
    assert few[0] != fit_temperature(rows)


def test_void_pixels_and_their_logits_do_not_matter_to_the_temperature():
    logits, target = drawn((3, 40, 40))
    void = np.random.default_rng(0).random(target.shape) < 0.4
    expected = fit_temperature([(logits[:, ~void][:, None], target[~void][None])])
    logits[:, void] = np.nan
    masked = np.where(void, 255, target)
    assert fit_temperature([(logits, masked)], ignore_index=255) == expected


def test_temperatures_without_a_minimum_end_at_the_bounds():
    target = np.zeros((2, 2), np.uint8)
    logits = np.stack([np.ones((2, 2)), np.zeros((2, 2))])
    assert fit_temperature([(logits, target)]) == 0.01  # all right: never cold enough
    assert fit_temperature([(logits, target + 1)]) == 100  # all wrong: never hot enough
    assert fit_temperature([(logits * 0, target)]) == 1


def test_nothing_to_fit_on_is_refused():
    with pytest.raises(
        DataError, match=r"found no valid pixel to fit a temperature on; check the masks and ignore_index$"
    ):
        fit_temperature([(np.zeros((3, 2, 2)), np.full((2, 2), 255))], ignore_index=255)
    with pytest.raises(DataError, match="found no valid pixel"):
        fit_temperature([])
    with pytest.raises(DataError, match="found logits that are not finite; clip logarithms of probabilities"):
        fit_temperature([(np.full((2, 2, 2), -np.inf), np.zeros((2, 2), np.uint8))])

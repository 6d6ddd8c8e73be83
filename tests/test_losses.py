from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densekit.color import rgb_to_y
from densekit.errors import ConfigError
from densekit.losses import IGNORE, binary_cross_entropy, charbonnier, cross_entropy, dice, l1, luma, segmentation_loss

CLASSES = {"ce": 4, "dice": 4, "ce+dice": 4, "weighted ce": 4, "bce": 1, "bce+dice": 1, "binary dice": 1}


def loss_of(name):
    weights = torch.tensor([0.5, 1.0, 2.0, 0.1]) if "weighted" in name else None
    return segmentation_loss(name.split()[-1], weights)


def random_case(classes, share_of_void=0.3, seed=0):
    torch.manual_seed(seed)
    logits = torch.randn(2, classes, 9, 11) * 3
    target = torch.randint(max(classes, 2), (2, 9, 11))
    void = torch.rand(target.shape) < share_of_void
    return logits, target.where(~void, IGNORE), void


def value_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("name", CLASSES)
def test_void_pixels_change_neither_the_loss_nor_its_gradient(name):
    logits, target, void = random_case(CLASSES[name])
    other = torch.where(void[:, None], 50 * torch.randn_like(logits), logits)
    value, gradient = value_and_gradient(loss_of(name), logits, target)
    changed, changed_gradient = value_and_gradient(loss_of(name), other, target)
    assert value == changed
    assert torch.equal(gradient, changed_gradient)
    assert (gradient.movedim(1, -1)[void] == 0).all()
    assert (gradient.movedim(1, -1)[~void] != 0).any()


@pytest.mark.parametrize("name", CLASSES)
def test_a_batch_that_is_all_void_gives_zero_and_gradients_of_zero(name):
    logits, target, _ = random_case(CLASSES[name])
    value, gradient = value_and_gradient(loss_of(name), logits, torch.full_like(target, IGNORE))
    assert value == 0
    assert gradient is not None
    assert (gradient == 0).all()


def test_torch_itself_gives_no_number_for_all_void():
    """The positive control of the test above."""
    logits, target, _ = random_case(4)
    assert F.cross_entropy(logits, torch.full_like(target, IGNORE), ignore_index=IGNORE).isnan()


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0, 0.0])])
def test_cross_entropy_is_that_of_torch(weights):
    logits, target, _ = random_case(4)
    expected = value_and_gradient(lambda x, y: F.cross_entropy(x, y, weights, ignore_index=IGNORE), logits, target)
    found = value_and_gradient(lambda x, y: cross_entropy(x, y, weights), logits, target)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_class_weights_are_a_weighted_mean_over_pixels():
    logits = torch.tensor([[[[0.0, 0.0]], [[1.0, 3.0]]]])  # two pixels, two classes
    target = torch.tensor([[[0, 1]]])
    losses = math.log(1 + math.e), math.log(1 + math.exp(-3))
    found = cross_entropy(logits, target, torch.tensor([3.0, 1.0]))
    assert found.item() == pytest.approx((3 * losses[0] + losses[1]) / 4)


def test_pixels_of_weight_zero_alone_give_zero():
    logits, target, _ = random_case(2)
    assert cross_entropy(logits, torch.zeros_like(target), torch.tensor([0.0, 1.0])) == 0


def test_binary_cross_entropy_is_the_mean_over_labelled_pixels():
    logits, target, void = random_case(1)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][~void], target[~void].float())
    torch.testing.assert_close(binary_cross_entropy(logits, target), expected)


def test_dice_by_hand():
    """Two pixels of the foreground with probabilities 0.75 and 0.5, one of the background with 0.25, one void."""
    probabilities = torch.tensor([0.75, 0.5, 0.25, 0.9])
    logits, target = probabilities.logit().view(1, 1, 2, 2), torch.tensor([[[1, 1], [0, IGNORE]]])
    expected = 1 - 2 * (0.75 + 0.5) / ((0.75 + 0.5 + 0.25) + 2)
    assert dice(logits, target).item() == pytest.approx(expected)

    both = torch.stack([torch.zeros(4), probabilities.logit()]).view(1, 2, 2, 2)  # the same as two classes
    background = 1 - 2 * 0.75 / ((0.25 + 0.5 + 0.75) + 1)
    assert dice(both, target).item() == pytest.approx((expected + background) / 2)


def test_dice_passes_over_classes_that_are_absent():
    logits, target, _ = random_case(4)
    target = target.where(target != 2, IGNORE)
    with_all = dice(logits, target)
    shuffled = logits[:, [0, 1, 3, 2]]
    torch.testing.assert_close(
        dice(shuffled, target.where(target != 3, 2)), with_all
    )  # the name of the absent one does not count
    assert dice(torch.randn(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)) == 0


def test_a_perfect_answer_costs_nothing():
    _, target, void = random_case(4)
    sure = 100.0 * F.one_hot(target.where(~void, 0), 4).movedim(-1, 1)
    for name in ("ce", "dice", "ce+dice"):
        assert loss_of(name)(sure, target).item() == pytest.approx(0, abs=1e-6)


def test_parts_joined_by_plus_are_added():
    logits, target, _ = random_case(4)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = cross_entropy(logits, target, weights) + dice(logits, target)
    torch.testing.assert_close(segmentation_loss("ce+dice", weights)(logits, target), expected)


def test_an_unknown_part_gets_a_suggestion():
    with pytest.raises(
        ConfigError, match=r"train\.loss='ce\+dise': no loss 'dise'; did you mean 'dice'\? \(known: ce, bce, dice\)"
    ):
        segmentation_loss("ce+dise")


def test_the_losses_of_super_resolution():
    torch.manual_seed(0)
    sr, hr = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    assert l1(sr, hr).item() == pytest.approx((sr - hr).abs().mean().item())
    assert charbonnier(sr, hr).item() == pytest.approx(l1(sr, hr).item(), abs=2e-3)
    assert charbonnier(sr, sr).item() == pytest.approx(1e-3)
    equal = sr.clone().requires_grad_()
    charbonnier(equal, sr).backward()
    assert (equal.grad == 0).all()


def test_the_luma_loss_is_that_of_the_luma_where_the_difference_is_grey():
    torch.manual_seed(0)
    hr, grey = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4) - 0.5
    assert luma(hr + grey, hr).item() == pytest.approx(grey.abs().mean().item(), rel=1e-5)


def test_the_luma_loss_weighs_colours_as_the_scored_luma_does():
    torch.manual_seed(0)
    sr, hr = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    a, b = ((rgb_to_y(x[0].permute(1, 2, 0).numpy() * 255) - 16) / 219 for x in (sr, hr))
    expected = np.abs(a - b).mean()
    for channel in (0, 2):
        difference = (sr - hr)[0, channel].numpy() - (a - b)
        expected += 0.05 * np.abs(difference).mean()
    assert luma(sr, hr).item() == pytest.approx(expected, rel=1e-4)

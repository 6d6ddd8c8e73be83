from __future__ import annotations

import pytest
import torch

from densekit.errors import DataError
from densekit.losses import IGNORE, cross_entropy, dice, mask
from densekit.losses.masking import known_gradient
from tests.losses.cases import KINDS, make_case


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (
            (2, 3, 4, 5),
            (2, 5, 4),
            "a target of shape (2, 5, 4) does not go with logits of shape (2, 3, 4, 5); expected (B, H, W), or "
            "(B, C, H, W) for several labels a pixel, with logits (B, C, H, W)",
        ),
        (
            (3, 4, 5),
            (4, 5),
            "a target of shape (4, 5) does not go with logits of shape (3, 4, 5); expected (B, H, W), or "
            "(B, C, H, W) for several labels a pixel, with logits (B, C, H, W)",
        ),
        (
            (1, 256, 2, 2),
            (1, 2, 2),
            "256 classes, but 255 is void in a target; expected 255 classes at most",
        ),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(logits, target, message):
    with pytest.raises(DataError) as caught:
        mask(torch.zeros(logits), torch.zeros(target, dtype=torch.int64))
    assert str(caught.value) == message


@pytest.mark.parametrize(("kind", "wrong", "last"), [("binary", 2, 1), ("multiclass", 4, 3), ("multilabel", -1, 1)])
def test_a_label_that_is_neither_a_class_nor_void_is_refused(kind, wrong, last):
    logits, target, _ = make_case(kind)
    target[1, ..., 3, 4] = target[1, ..., 3, 5] = wrong
    count = 8 if kind == "multilabel" else 2
    with pytest.raises(DataError) as caught:
        dice(logits, target)
    assert str(caught.value) == f"label {wrong} in the target ({count} such); expected 0..{last}, or 255 for void"


def test_weights_of_another_number_than_the_classes_are_refused():
    logits, target, _ = make_case("multiclass")
    with pytest.raises(DataError, match=r"^class weights of shape \(3,\); expected \(4,\)$"):
        cross_entropy(logits, target, torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wanted_and_what_scores_are_nothing_under_void(kind):
    logits, target, void = make_case(kind)
    masked = mask(logits, target)
    assert masked.exclusive == (kind == "multiclass")
    assert not masked.wanted()[void].any()
    assert (masked.scores()[void] == 0).all()
    assert (masked.scores()[~void] > 0).all()
    if masked.exclusive:
        assert torch.equal(masked.wanted().sum(1) == 1, target != IGNORE)


def test_a_batch_of_no_pixels_costs_nothing():
    logits = torch.zeros(0, 3, 4, 4, requires_grad=True)
    cross_entropy(logits, torch.zeros(0, 4, 4, dtype=torch.int64)).backward()
    assert logits.grad.shape == logits.shape


def test_a_known_gradient_reaches_what_comes_before():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (3 * known_gradient(2 * x, torch.tensor(7.0), torch.tensor([0.5, -1.0]))).backward()
    assert x.grad.tolist() == [3.0, -6.0]


def test_a_known_gradient_can_be_used_twice_and_is_not_written_over():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    value = known_gradient(x, torch.tensor(7.0), torch.tensor([0.5, -1.0]))
    value.backward(retain_graph=True)
    x.grad.mul_(100)
    value.backward(retain_graph=True)
    assert x.grad.tolist() == [50.5, -101.0]
    assert torch.autograd.grad(value, x)[0].tolist() == [0.5, -1.0]

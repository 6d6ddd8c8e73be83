"""The sort on the CPU, which leaves out what cannot matter, against the plain one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit.losses import lovasz
from densekit.losses.lovasz import _solve_at_once, _solve_rows
from densekit.losses.masking import mask
from tests.losses.cases import KINDS, make_case


def solve_both(logits, target):
    """Returns what both sorts find, each with its gradient as the sum of steps at each error.

    Where errors are equal, any may stand first; their steps have the same sum in any order.
    """
    masked = mask(logits, target)
    x = masked.logits.softmax(1) if masked.exclusive else masked.logits
    wanted = masked.wanted()
    errors = torch.where(wanted, 1 - x, x if masked.exclusive else 1 + x)
    solved = []
    for losses, gradient in (_solve_rows(x, masked), _solve_at_once(x, masked)):
        assert (gradient.where(wanted, 0) <= 0).all()
        assert (gradient.where(~wanted, 0) >= 0).all()
        sums = []
        for channel in range(x.shape[1]):
            levels, level = errors[:, channel].unique(return_inverse=True)
            steps = gradient[:, channel].abs().double().flatten()
            sums.append(torch.zeros(len(levels), dtype=torch.float64).scatter_add_(0, level.flatten(), steps))
        solved.append((losses, torch.cat(sums)))
    return solved


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    sureness=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_the_sort_that_leaves_out_pixels_is_the_plain_one(kind, seed, share, sureness):
    logits, target, _ = make_case(kind, share, seed)
    rows, plain = solve_both(sureness * logits, target)
    for one, other in zip(rows, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_errors_give_the_same_loss_in_any_order(kind):
    """All logits 0 or 1, so that nearly all pixels are ties."""
    logits, target, _ = make_case(kind)
    logits = (logits > 0).float()
    rows, plain = solve_both(logits, target)
    torch.testing.assert_close(rows, plain, rtol=1e-4, atol=1e-6)
    mirrored = lovasz(logits.flip(-1), target.flip(-1))
    torch.testing.assert_close(mirrored, lovasz(logits, target), rtol=1e-5, atol=0)


def test_one_wrong_pixel_of_a_class_of_one_is_all_there_is_to_lose():
    logits = torch.tensor([-3.0, -9.0]).view(1, 1, 1, 2)
    target = torch.tensor([[[1, 0]]])
    assert lovasz(logits, target).item() == pytest.approx(4.0)  # hinge: 1 + 3, and nothing for the other


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_against_the_gradient_lowers_the_loss(kind):
    logits, target, _ = make_case(kind)
    logits.requires_grad_()
    before = lovasz(logits, target)
    before.backward()
    assert lovasz(logits.detach() - 0.5 * logits.grad / logits.grad.norm(), target) < before

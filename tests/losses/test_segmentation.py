"""Every loss of segmentation against an independent one, and what all of them promise."""

from __future__ import annotations

import math

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit.errors import ConfigError
from densekit.losses import (
    IGNORE,
    SEG_LOSSES,
    binary_cross_entropy,
    binary_focal,
    cross_entropy,
    dice,
    focal,
    jaccard,
    lovasz,
    ohem,
    segmentation_loss,
    tversky,
)
from tests.losses import reference
from tests.losses.cases import ALL, KINDS, make_case, make_loss, value_and_gradient, weights_of


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "kind"), ALL)
def test_a_loss_is_its_definition(name, kind, dtype):
    logits, target, _ = make_case(kind, dtype=dtype)
    classes = max(logits.shape[1], 2)
    weights = weights_of(kind).tolist() if "weighted" in name else [1.0] * classes
    expected = 0.0
    for part in name.split()[-1].split("+"):
        factor, _, word = part.rpartition("*")
        smoothing = (0.1,) if "smooth" in name else ()
        expected += float(factor or 1) * reference.LOSSES[word](logits, target, weights, *smoothing)
    found = make_loss(name, kind)(logits, target)
    assert found.item() == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 1e-5)
    assert found.dtype == dtype


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_a_gradient_is_that_of_finite_differences(name, kind):
    logits, target, _ = make_case(kind, size=(2, 3, 4), classes=4, dtype=torch.float64, seed=3)
    loss = make_loss(name, kind)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_(), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_float32_on_the_cpu_has_the_gradient_of_float64(name, kind):
    logits, target, _ = make_case(kind, size=(3, 40, 30))
    _, single = value_and_gradient(make_loss(name, kind), logits, target)
    _, double = value_and_gradient(make_loss(name, kind), logits.double(), target)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("size", [50.0, 1e30, math.inf, math.nan])
@pytest.mark.parametrize(("name", "kind"), ALL)
def test_void_pixels_change_neither_the_loss_nor_its_gradient(name, kind, size):
    logits, target, void = make_case(kind)
    other = torch.where(void, size * torch.randn_like(logits).sign(), logits)
    value, gradient = value_and_gradient(make_loss(name, kind), logits, target)
    changed, changed_gradient = value_and_gradient(make_loss(name, kind), other, target)
    assert value == changed
    assert torch.equal(gradient, changed_gradient)
    assert (gradient[void] == 0).all()
    assert (gradient[~void] != 0).any()


@settings(max_examples=30, deadline=None)
@given(case=st.sampled_from(ALL), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_void_never_counts_whatever_lies_under_it(case, seed, share):
    name, kind = case
    logits, target, void = make_case(kind, share, seed, size=(2, 5, 6))
    other = torch.where(void, 30 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)), logits)
    value, gradient = value_and_gradient(make_loss(name, kind), logits, target)
    changed, changed_gradient = value_and_gradient(make_loss(name, kind), other, target)
    assert value == changed
    assert value.isfinite()
    assert torch.equal(gradient, changed_gradient)
    assert (gradient[void] == 0).all()


@pytest.mark.parametrize("size", [1.0, math.nan])
@pytest.mark.parametrize(("name", "kind"), ALL)
def test_a_batch_that_is_all_void_gives_zero_and_gradients_of_zero(name, kind, size):
    logits, target, _ = make_case(kind)
    value, gradient = value_and_gradient(make_loss(name, kind), size * logits, torch.full_like(target, IGNORE))
    assert value == 0
    assert gradient is not None
    assert (gradient == 0).all()


def test_others_give_no_number_or_no_gradient_for_all_void():
    """The positive control of the test above."""
    logits, target, _ = make_case("multiclass")
    target = torch.full_like(target, IGNORE)
    assert F.cross_entropy(logits, target, ignore_index=IGNORE).isnan()
    assert smp.losses.FocalLoss("multiclass", ignore_index=IGNORE)(logits, target).isnan()
    assert smp.losses.LovaszLoss("multiclass", ignore_index=IGNORE)(logits, target).numel() == 0


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_a_network_gone_to_nan_is_seen(name, kind):
    logits, target, _ = make_case(kind)
    logits[0, :, 0, 0], target[0, ..., 0, 0] = math.nan, 1
    assert make_loss(name, kind)(logits, target).isnan()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize(("name", "kind"), ALL)
def test_any_type_of_whole_number_and_of_float_will_do(name, kind, dtype):
    logits, target, _ = make_case(kind)
    expected = make_loss(name, kind)(logits, target)
    assert torch.equal(make_loss(name, kind)(logits, target.to(dtype)), expected)
    half = make_loss(name, kind)(logits.bfloat16(), target)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(expected.item(), rel=0.03)


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_the_layout_of_tensors_does_not_matter(name, kind):
    logits, target, _ = make_case(kind)
    expected = value_and_gradient(make_loss(name, kind), logits, target)
    columns = target.transpose(-1, -2).contiguous().transpose(-1, -2)
    found = value_and_gradient(make_loss(name, kind), logits.to(memory_format=torch.channels_last), columns)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", SEG_LOSSES)
def test_binary_is_multilabel_of_one_class(name):
    logits, target, _ = make_case("binary")
    loss = segmentation_loss(name)
    assert torch.equal(loss(logits, target), loss(logits, target[:, None]))


@pytest.mark.parametrize("name", SEG_LOSSES)
def test_a_perfect_answer_costs_nothing(name):
    for kind in KINDS:
        logits, target, _ = make_case(kind)
        wanted = F.one_hot(target.clamp(max=3), 4).movedim(-1, 1) if kind == "multiclass" else target.view_as(logits)
        sure = 60.0 * (2 * wanted.clamp(max=1) - 1)
        assert segmentation_loss(name)(sure, target).item() == pytest.approx(0, abs=1e-4)


SMP = {
    "dice": (dice, lambda mode: smp.losses.DiceLoss(mode, ignore_index=IGNORE)),
    "jaccard": (jaccard, lambda mode: smp.losses.JaccardLoss(mode, ignore_index=IGNORE)),
    "tversky": (tversky, lambda mode: smp.losses.TverskyLoss(mode, ignore_index=IGNORE, alpha=0.3, beta=0.7)),
    "bfocal": (
        binary_focal,
        lambda mode: smp.losses.FocalLoss(mode, ignore_index=None if mode == "multilabel" else IGNORE),
    ),
    "bce": (binary_cross_entropy, lambda mode: smp.losses.SoftBCEWithLogitsLoss(ignore_index=None)),
    "lovasz": (lovasz, lambda mode: smp.losses.LovaszLoss(mode, ignore_index=IGNORE)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SMP)
def test_a_loss_and_its_gradient_are_those_of_smp_where_smp_is_right(name, kind, dtype):
    """Not for several labels a pixel: void in focal (it fails) and Lovász (it joins the classes to one)."""
    if name == "bce" and kind == "multiclass":
        pytest.skip("SMP has no binary cross entropy of one class against the rest")
    if name == "lovasz" and dtype == torch.float64:
        pytest.skip("SMP's Lovász takes float32 alone")
    ours, theirs = SMP[name]
    void = 0.0 if name == "bce" or (name, kind) == ("bfocal", "multilabel") else 0.3
    logits, target, _ = make_case(kind, void, size=(2, 20, 30), dtype=dtype)
    module = theirs("binary" if name == "lovasz" and kind == "multilabel" else kind)

    def their_loss(x, t):
        if name == "lovasz" and kind == "multilabel":
            return sum(module(x[:, c], t[:, c]) for c in range(x.shape[1])) / x.shape[1]
        return module(x, t.view_as(x).to(x.dtype) if name == "bce" else t)

    found = value_and_gradient(ours, logits, target)
    expected = value_and_gradient(their_loss, logits, target)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 1e-6}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0, 0.0])])
def test_cross_entropy_is_that_of_torch(weights, smoothing):
    logits, target, _ = make_case("multiclass")
    expected = value_and_gradient(
        lambda x, y: F.cross_entropy(x, y, weights, ignore_index=IGNORE, label_smoothing=smoothing), logits, target
    )
    found = value_and_gradient(lambda x, y: cross_entropy(x, y, weights, smoothing), logits, target)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_class_weights_are_a_weighted_mean_over_pixels():
    logits = torch.tensor([[[[0.0, 0.0]], [[1.0, 3.0]]]])  # two pixels, two classes
    target = torch.tensor([[[0, 1]]])
    losses = math.log(1 + math.e), math.log(1 + math.exp(-3))
    found = cross_entropy(logits, target, torch.tensor([3.0, 1.0]))
    assert found.item() == pytest.approx((3 * losses[0] + losses[1]) / 4)


@pytest.mark.parametrize("name", ["ce", "bce", "focal", "bfocal", "ohem"])
def test_pixels_of_weight_zero_alone_give_zero(name):
    logits, target, _ = make_case("binary")
    target = torch.zeros_like(target)
    assert segmentation_loss(name, torch.tensor([0.0, 1.0]))(logits, target) == 0


def test_dice_by_hand():
    """Two pixels of the foreground with probabilities 0.75 and 0.5, one of the background with 0.25, one void."""
    probabilities = torch.tensor([0.75, 0.5, 0.25, 0.9])
    logits, target = probabilities.logit().view(1, 1, 2, 2), torch.tensor([[[1, 1], [0, IGNORE]]])
    expected = 1 - 2 * (0.75 + 0.5) / ((0.75 + 0.5 + 0.25) + 2)
    assert dice(logits, target).item() == pytest.approx(expected)

    both = torch.stack([torch.zeros(4), probabilities.logit()]).view(1, 2, 2, 2)  # the same as two classes
    background = 1 - 2 * 0.75 / ((0.25 + 0.5 + 0.75) + 1)
    assert dice(both, target).item() == pytest.approx((expected + background) / 2)


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "focal-tversky", "lovasz"])
def test_losses_of_overlap_pass_over_classes_that_are_absent(name):
    loss = segmentation_loss(name)
    logits, target, _ = make_case("multiclass")
    target = target.where(target != 2, IGNORE)
    with_all = loss(logits, target)
    shuffled = logits[:, [0, 1, 3, 2]]
    torch.testing.assert_close(loss(shuffled, target.where(target != 3, 2)), with_all)
    value, gradient = value_and_gradient(loss, torch.randn(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
    assert value == 0
    assert (gradient == 0).all()


def test_dice_and_jaccard_are_cases_of_tversky():
    for kind in KINDS:
        logits, target, _ = make_case(kind)
        torch.testing.assert_close(tversky(logits, target, 0.5, 0.5), dice(logits, target))
        torch.testing.assert_close(tversky(logits, target, 1.0, 1.0), jaccard(logits, target))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("kind", KINDS)
def test_focal_losses_hold_for_any_gamma_and_any_logit(kind, gamma):
    logits, target, _ = make_case(kind, dtype=torch.float64)
    for loss, softmax in ((focal, True), (binary_focal, False)):
        expected = reference.focal(logits, target, [1.0] * 4, gamma, softmax)
        assert loss(logits, target, gamma=gamma).item() == pytest.approx(expected)
        for size in (100, 1e6):
            value, gradient = value_and_gradient(lambda x, t: loss(x, t, gamma=gamma), size * logits.float(), target)  # noqa: B023
            assert value.isfinite()
            assert gradient.isfinite().all()


def test_ohem_keeps_a_sixteenth_where_all_is_easy():
    logits = torch.linspace(2, 9, 64).view(1, 1, 8, 8)
    target = torch.ones(1, 8, 8, dtype=torch.int64)
    expected = F.softplus(-logits.flatten()[:4]).mean()
    torch.testing.assert_close(ohem(logits, target), expected)
    _, gradient = value_and_gradient(ohem, logits, target)
    assert torch.count_nonzero(gradient) == 4


def test_losses_add_with_their_factors():
    logits, target, _ = make_case("multiclass")
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = cross_entropy(logits, target, weights) + 0.5 * dice(logits, target) + 2 * lovasz(logits, target)
    torch.testing.assert_close(segmentation_loss(" ce + 0.5*dice+2 * lovasz", weights)(logits, target), expected)


KNOWN = ", ".join(SEG_LOSSES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ce+dise", f"train.loss='ce+dise': no loss 'dise'; did you mean 'dice'? (known: {KNOWN})"),
        ("", f"train.loss='': no loss '' (known: {KNOWN})"),
        ("ce+", f"train.loss='ce+': no loss '' (known: {KNOWN})"),
        ("0*ce", "train.loss='0*ce': '0*ce' needs a number above 0 before *, such as 0.5"),
        ("ce+half*dice", "train.loss='ce+half*dice': 'half*dice' needs a number above 0 before *, such as 0.5"),
        ("-1*ce", "train.loss='-1*ce': '-1*ce' needs a number above 0 before *, such as 0.5"),
        ("0.5*dise", f"train.loss='0.5*dise': no loss 'dise'; did you mean 'dice'? (known: {KNOWN})"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, message):
    with pytest.raises(ConfigError) as caught:
        segmentation_loss(name)
    assert str(caught.value) == message


def test_options_that_no_part_takes_are_refused():
    with pytest.raises(ConfigError) as caught:
        segmentation_loss("dice+lovasz", torch.ones(3))
    takers = "ce or bce or focal or bfocal or ohem"
    assert (
        str(caught.value) == f"train.class_weights: goes with {takers}, but train.loss='dice+lovasz' has none of these"
    )
    with pytest.raises(ConfigError, match=r"train\.label_smoothing: goes with ce or bce, but train\.loss='focal'"):
        segmentation_loss("focal", label_smoothing=0.1)

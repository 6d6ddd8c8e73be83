from __future__ import annotations

import math

import pytest
import torch

from densekit.errors import ConfigError
from densekit.losses import GAN_LOSSES, discriminator_loss, generator_loss


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(2, 4, 1, 3, 3, generator=generator, dtype=torch.float64)


def mean(values):
    return sum(values) / len(values)


def test_the_relativistic_loss_is_that_of_the_esrgan_paper(logits):
    """Equations 1 and 2 of ESRGAN, halved."""
    real, fake = (x.flatten().tolist() for x in logits)
    real_over_fake = [sigmoid(x - mean(fake)) for x in real]
    fake_over_real = [sigmoid(x - mean(real)) for x in fake]
    d = -mean([math.log(p) for p in real_over_fake]) - mean([math.log(1 - p) for p in fake_over_real])
    g = -mean([math.log(1 - p) for p in real_over_fake]) - mean([math.log(p) for p in fake_over_real])
    assert discriminator_loss(*logits).item() == pytest.approx(d / 2)
    assert generator_loss(*logits).item() == pytest.approx(g / 2)


def test_the_other_losses_are_their_formulas(logits):
    real, fake = (x.flatten().tolist() for x in logits)
    expected = {
        "vanilla": (
            -(mean([math.log(sigmoid(x)) for x in real]) + mean([math.log(1 - sigmoid(x)) for x in fake])) / 2,
            -mean([math.log(sigmoid(x)) for x in fake]),
        ),
        "lsgan": (
            (mean([(x - 1) ** 2 for x in real]) + mean([x**2 for x in fake])) / 2,
            mean([(x - 1) ** 2 for x in fake]),
        ),
        "hinge": (
            (mean([max(0, 1 - x) for x in real]) + mean([max(0, 1 + x) for x in fake])) / 2,
            -mean(fake),
        ),
    }
    assert {*expected, "ragan"} == set(GAN_LOSSES)
    for kind, (d, g) in expected.items():
        assert discriminator_loss(*logits, kind).item() == pytest.approx(d)
        assert generator_loss(*logits, kind).item() == pytest.approx(g)


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_each_player_moves_its_own_way(kind, logits):
    real, fake = logits.clone().requires_grad_(), logits[1].clone().requires_grad_()
    discriminator_loss(real[0], fake, kind).backward()
    assert real.grad[0].sum() <= 0
    assert fake.grad.sum() >= 0
    real.grad = fake.grad = None
    generator_loss(real[0], fake, kind).backward()
    assert fake.grad.sum() < 0 or kind == "lsgan"
    assert real.grad is None


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_the_gradient_of_a_gan_loss_is_that_of_finite_differences(kind, logits):
    real, fake = logits[:, :1].clone()
    assert torch.autograd.gradcheck(
        lambda r, f: discriminator_loss(r, f, kind), (real.requires_grad_(), fake.requires_grad_())
    )
    assert torch.autograd.gradcheck(lambda f: generator_loss(real, f, kind), fake)


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_no_logit_is_too_large(kind):
    real, fake = torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4], requires_grad=True)
    for loss in (discriminator_loss, generator_loss):
        value = loss(real, fake, kind)
        value.backward()
        assert value.isfinite()
        assert fake.grad.isfinite().all()


def test_an_unknown_kind_gets_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        generator_loss(torch.zeros(1), torch.zeros(1), "ragans")
    assert str(caught.value) == "no GAN loss 'ragans'; did you mean 'ragan'? (known: ragan, vanilla, lsgan, hinge)"

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from densekit.config import Config
from densekit.errors import ConfigError
from densekit.losses import GAN_LOSSES, discriminator_loss, generator_loss
from densekit.models.discriminators import SpectralConv
from densekit.tasks.adversary import Adversary
from densekit.train.state import load_state, save_state
from tests.training_data import sr_config


def config_of(gan: dict | None = None, **train) -> Config:
    config = sr_config("pictures", **{"crop_size": 16, **train}).model_dump()
    return Config.model_validate({**config, "gan": {"num_features": 4, "loss": "ragan", **(gan or {})}})


def adversary_of(gan: dict | None = None, **train) -> Adversary:
    adversary = Adversary(config_of(gan, **train))
    adversary.begin("cpu")
    return adversary


def always(*_) -> bool:
    return True


def pairs(seed: int = 0, count: int = 4) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields blurred pictures of 32 x 32 and the real ones: waves with noise, at random levels."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        level = torch.rand(count, 3, 1, 1, generator=generator)
        hr = (level + 0.15 * torch.randn(count, 3, 32, 32, generator=generator)).clamp(0, 1)
        yield F.avg_pool2d(hr, 3, stride=1, padding=1, count_include_pad=False), hr


def gradients(net) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(("discriminator", "kind"), [("vgg", "ragan"), ("unet", "ragan"), ("unet", "vanilla")])
def test_it_learns_to_tell_made_pictures_from_real_ones(discriminator, kind):
    adversary = adversary_of({"discriminator": discriminator, "loss": kind, "learning_rate": 1e-3})
    losses = []
    for _, (sr, hr) in zip(range(60), pairs(), strict=False):
        adversary.judge(sr, hr)
        losses.append(adversary.step(1.0, always)["d_loss"])
    assert statistics.median(losses[-10:]) < 0.75 * losses[0]
    sr, hr = next(pairs(seed=1, count=16))  # never seen
    with torch.no_grad():
        real, fake = (adversary.net(x).mean((1, 2, 3) if discriminator == "unet" else 1) for x in (hr, sr))
    assert (real[:, None] > fake).float().mean() > 0.95


def test_an_adversary_of_random_pictures_learns_nothing():
    """The control of the test above: where both kinds of pictures are alike, the loss stays what no opinion costs."""
    adversary = adversary_of({"loss": "vanilla", "learning_rate": 1e-3})
    losses = []
    for _, (_, hr), (_, other) in zip(range(40), pairs(1, 2), pairs(2, 2), strict=False):
        adversary.judge(other, hr)
        losses.append(adversary.step(1.0, always)["d_loss"])
    assert statistics.median(losses[-10:]) == pytest.approx(math.log(2), rel=0.05)


@pytest.mark.parametrize("kind", GAN_LOSSES)
@pytest.mark.parametrize("discriminator", ["unet", "vgg"])
def test_its_opinion_is_the_formula_and_so_are_both_gradients(discriminator, kind):
    adversary = adversary_of({"discriminator": discriminator, "loss": kind, "weight": 0.3})
    sr, hr = next(pairs())
    sr.requires_grad_()
    real, fake = adversary.net(hr), adversary.net(sr)
    opinion, loss = generator_loss(real, fake, kind), discriminator_loss(real, fake, kind)
    (wanted,) = torch.autograd.grad(0.3 * opinion, sr, retain_graph=True)
    names = dict(adversary.net.named_parameters())
    own = dict(zip(names, torch.autograd.grad(loss, names.values()), strict=True))

    term = adversary.judge(sr, hr)
    torch.testing.assert_close(term, 0.3 * opinion)
    torch.testing.assert_close(gradients(adversary.net), own)
    assert sr.grad is None  # it learns from pictures alone, not from what made them
    before = gradients(adversary.net)
    term.backward()
    torch.testing.assert_close(sr.grad, wanted)
    assert same(gradients(adversary.net), before)  # what the network learns from is none of its business
    assert all(parameter.requires_grad for parameter in adversary.net.parameters())
    logged = adversary.step(1.0, always)
    assert logged["d_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["gan_loss"] == pytest.approx(opinion.item(), rel=1e-5)
    assert float.fromhex(logged["d_loss_hex"]) == logged["d_loss"]


def test_the_relativistic_opinion_is_that_of_the_esrgan_paper():
    """Equation 2 of ESRGAN in its own words, halved: probabilities of being more real than the other kind's mean."""
    adversary = adversary_of({"discriminator": "vgg", "loss": "ragan", "weight": 1.0})
    sr, hr = next(pairs())
    with torch.no_grad():
        real, fake = adversary.net(hr).double(), adversary.net(sr).double()
    more_real, more_fake = torch.sigmoid(real - fake.mean()), torch.sigmoid(fake - real.mean())
    expected = -(torch.log(1 - more_real).mean() + torch.log(more_fake).mean()) / 2
    assert adversary.judge(sr.requires_grad_(), hr).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("discriminator", ["unet", "vgg"])
def test_the_gradient_it_gives_is_that_of_finite_differences(discriminator):
    adversary = adversary_of({"discriminator": discriminator, "weight": 1.0})
    adversary.net.double()
    sr, hr = (x.double() for x in next(pairs(count=2)))
    (gradient,) = torch.autograd.grad(adversary.judge(sr.requires_grad_(), hr), sr)
    direction = gradient / gradient.norm()
    ahead, back = (adversary.judge(sr.detach() + step * direction, hr) for step in (0, 0))
    assert ahead == back  # judging has no memory
    values = []
    for step in (1e-2, -1e-2):
        moved = (sr.detach() + step * direction).requires_grad_()
        values.append(adversary.judge(moved, hr).item())
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(gradient.norm().item(), rel=2e-2)


def test_bf16_leaves_the_gradients_apart():
    """Autocast keeps copies of weights for a pass; those of its own learning must not let the network's through."""
    adversary = adversary_of({"loss": "vanilla"}, precision="bf16")
    sr, hr = next(pairs())
    with torch.autocast("cpu", torch.bfloat16):
        term = adversary.judge(sr.requires_grad_(), hr)
    before = gradients(adversary.net)
    term.backward()
    assert same(gradients(adversary.net), before)
    assert all(gradient.dtype == torch.float32 and gradient.abs().max() > 0 for gradient in before.values())


def test_accumulated_passes_are_one_large_batch():
    whole, parts = adversary_of({"loss": "vanilla"}), adversary_of({"loss": "vanilla"}, accumulate=2)
    sr, hr = next(pairs(count=8))
    whole.judge(sr, hr)
    for part in (slice(4), slice(4, 8)):
        parts.judge(sr[part], hr[part])
    torch.testing.assert_close(gradients(whole.net), gradients(parts.net))
    logged = [adversary.step(1.0, always) for adversary in (whole, parts)]
    for key in ("d_loss", "gan_loss"):
        assert logged[0][key] == pytest.approx(logged[1][key], rel=1e-5)


def test_before_its_first_step_that_counts_it_learns_but_has_no_say():
    adversary = adversary_of({"start_step": 2})
    sr, hr = next(pairs())
    sr.requires_grad_()
    says = []
    for _ in range(3):
        before = {name: value.clone() for name, value in adversary.net.state_dict().items()}
        term = adversary.judge(sr, hr)
        says.append(term.requires_grad and term.item() != 0)
        logged = adversary.step(1.0, always)
        assert logged["gan_loss"] > 0
        assert not same(adversary.net.state_dict(), before)
    assert says == [False, False, True]


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_its_learning_rate_follows_the_schedule(share):
    """The first step of Adam is as long as the rate in every weight."""
    adversary = adversary_of({"learning_rate": 1e-3})
    before = adversary.net.first.weight.detach().clone()
    adversary.judge(*next(pairs()))
    adversary.step(share, always)
    moved = (adversary.net.first.weight - before).abs()
    assert moved.max().item() == pytest.approx(share * 1e-3, rel=1e-2)
    assert adversary.optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_a_refused_step_changes_nothing_but_the_count():
    adversary = adversary_of()
    before = {name: value.clone() for name, value in adversary.net.state_dict().items()}
    adversary.judge(*next(pairs()))
    asked = []
    adversary.step(1.0, lambda loss, norm, scaler: asked.append((loss, norm)))
    assert same(adversary.net.state_dict(), before)
    assert not adversary.optimizer.state
    assert adversary.steps == 1
    assert all(parameter.grad is None for parameter in adversary.net.parameters())
    (loss, norm) = asked[0]
    assert 0.5 < loss < 1
    assert norm > 0


def test_a_loss_that_is_not_finite_is_shown_to_the_judge_of_steps_and_left_out_of_the_log():
    adversary = adversary_of()
    sr, hr = next(pairs())
    adversary.judge(sr * math.nan, hr)
    asked = []
    assert adversary.step(1.0, lambda loss, norm, scaler: asked.append((loss, norm))) == {}
    assert math.isnan(asked[0][0])
    assert asked[0][1].isnan()
    adversary.judge(sr, hr)
    assert adversary.step(1.0, always)["d_loss"] > 0  # nothing of it is left


def test_singular_vectors_follow_the_weights_once_a_step():
    adversary = adversary_of({"learning_rate": 1e-2})
    convs = [module for module in adversary.net.modules() if isinstance(module, SpectralConv)]
    for _, (sr, hr) in zip(range(20), pairs(), strict=False):
        before = [conv.u.clone() for conv in convs]
        adversary.judge(sr, hr)
        assert all(torch.equal(conv.u, old) for conv, old in zip(convs, before, strict=True))
        adversary.step(1.0, always)
    for conv in convs:
        matrix = conv.weight.detach().flatten(1)
        assert (conv.u @ matrix @ conv.v / torch.linalg.matrix_norm(matrix, 2)).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("discriminator", ["unet", "vgg"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_saved_adversary_goes_on_as_if_it_had_never_stopped(tmp_path, discriminator, precision):
    def go_on(adversary, batches):
        for _ in range(3):
            with torch.autocast("cpu", torch.float16, enabled=precision == "fp16"):
                adversary.judge(*next(batches))
            adversary.step(0.5, always)

    options = {"gan": {"discriminator": discriminator}, "precision": precision}
    whole, batches = adversary_of(**options), pairs()
    go_on(whole, batches)
    keys = dict.fromkeys(("step", "best", "net", "average", "optimizer", "config"), 0)
    save_state(tmp_path / "state.dk", {**keys, "adversary": whole.state_dict()})
    go_on(whole, batches)

    resumed, batches = adversary_of(**options), pairs()
    resumed.load_state_dict(load_state(tmp_path / "state.dk")["adversary"])
    for _ in range(3):
        next(batches)
    go_on(resumed, batches)
    for name, adversary in {"whole": whole, "resumed": resumed}.items():
        save_state(tmp_path / name, {**keys, "adversary": adversary.state_dict()})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()


def test_an_overflow_of_scaled_losses_lowers_the_scale():
    adversary = adversary_of(precision="fp16")
    sr, hr = next(pairs())
    before = {name: value.clone() for name, value in adversary.net.state_dict().items()}
    adversary.net.last.weight.register_hook(lambda gradient: gradient * math.inf)
    adversary.judge(sr, hr)
    adversary.step(1.0, always)  # the scaler itself leaves it out
    assert adversary.scaler.get_scale() == 2.0**15
    weights = dict(adversary.net.named_parameters())
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_its_weights_are_a_function_of_the_seed_and_no_other_draw():
    torch.manual_seed(1)
    first = adversary_of(seed=3).net.state_dict()
    state = torch.get_rng_state()
    assert same(first, adversary_of(seed=3).net.state_dict())
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(first, adversary_of(seed=4).net.state_dict())


@pytest.mark.parametrize(
    ("discriminator", "crop", "enough", "sides"), [("vgg", 15, 16, "30 pixels"), ("unet", 8, 8, None)]
)
def test_crops_that_are_too_small_are_refused_with_the_size_that_is_not(discriminator, crop, enough, sides):
    if sides:
        with pytest.raises(ConfigError) as caught:
            adversary_of({"discriminator": discriminator}, crop_size=crop)
        assert str(caught.value) == (
            f"train.crop_size={crop}: gives pictures of {sides} at scale 2, but gan.discriminator={discriminator} "
            f"needs 32; raise it to {enough} or more"
        )
    adversary = adversary_of({"discriminator": discriminator}, crop_size=enough)
    picture = torch.rand(2, 3, 2 * enough, 2 * enough)
    assert adversary.judge(picture.clone().requires_grad_(), picture).isfinite()

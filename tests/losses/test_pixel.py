from __future__ import annotations

import numpy as np
import pytest
import torch

from densekit.color import rgb_to_y
from densekit.errors import ConfigError
from densekit.losses import SR_LOSSES, charbonnier, fft, l1, luma, super_resolution_loss


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 2, 3, 6, 8, generator=generator)


def test_l1_and_charbonnier_are_their_formulas(pair):
    sr, hr = pair
    assert l1(sr, hr).item() == pytest.approx((sr - hr).abs().mean().item())
    assert charbonnier(sr, hr).item() == pytest.approx(l1(sr, hr).item(), abs=2e-3)
    assert charbonnier(sr, sr).item() == pytest.approx(1e-3)
    equal = sr.clone().requires_grad_()
    charbonnier(equal, sr).backward()
    assert (equal.grad == 0).all()


def test_the_luma_loss_is_that_of_the_luma_where_the_difference_is_grey(pair):
    _, hr = pair
    grey = torch.rand(2, 1, 6, 8) - 0.5
    assert luma(hr + grey, hr).item() == pytest.approx(grey.abs().mean().item(), rel=1e-5)


def test_the_luma_loss_weighs_colours_as_the_scored_luma_does(pair):
    sr, hr = pair[:, :1]
    a, b = ((rgb_to_y(x[0].permute(1, 2, 0).numpy() * 255) - 16) / 219 for x in (sr, hr))
    expected = np.abs(a - b).mean()
    for channel in (0, 2):
        difference = (sr - hr)[0, channel].numpy() - (a - b)
        expected += 0.05 * np.abs(difference).mean()
    assert luma(sr, hr).item() == pytest.approx(expected, rel=1e-4)


def test_the_fft_loss_is_numpys_difference_of_spectra(pair):
    sr, hr = pair
    a, b = (np.fft.rfft2(x.double().numpy()) / np.sqrt(6 * 8) for x in (sr, hr))
    expected = (np.abs((a - b).real).mean() + np.abs((a - b).imag).mean()) / 2
    assert fft(sr, hr).item() == pytest.approx(expected, rel=1e-5)
    assert fft(sr.bfloat16(), hr.bfloat16()).dtype == torch.float32


def test_the_fft_loss_does_not_grow_with_the_crop():
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.randn(4, 3, size, size, generator=generator) for size in (16, 128))
    assert fft(large, 0 * large).item() == pytest.approx(fft(small, 0 * small).item(), rel=0.1)


@pytest.mark.parametrize("name", SR_LOSSES)
def test_the_gradient_of_a_pixel_loss_is_that_of_finite_differences(name, pair):
    sr, hr = pair.double()[:, :1]
    assert torch.autograd.gradcheck(lambda x: SR_LOSSES[name](x, hr), sr.clone().requires_grad_())


def test_losses_of_super_resolution_add_with_their_factors(pair):
    sr, hr = pair
    found = super_resolution_loss("l1+0.1*fft+2*own", own=lambda a, b: (a - b).amax())(sr, hr)
    torch.testing.assert_close(found, l1(sr, hr) + 0.1 * fft(sr, hr) + 2 * (sr - hr).amax())


def test_an_unknown_loss_of_super_resolution_is_refused():
    with pytest.raises(ConfigError) as caught:
        super_resolution_loss("l1+perceptual")
    assert str(caught.value) == ("train.loss='l1+perceptual': no loss 'perceptual' (known: l1, charbonnier, luma, fft)")

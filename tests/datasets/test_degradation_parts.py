from __future__ import annotations

import io
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densekit.datasets.degradation.chain import blur
from densekit.datasets.degradation.jpeg import jpeg, luminance
from densekit.datasets.degradation.kernels import Kernel
from tests.training_data import make_picture


def to_tensor(pixels):
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255


def to_pixels(x):
    return (x[0].permute(1, 2, 0) * 255).round().byte().numpy()


def through_a_file(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def psnr(one, other):
    return 10 * math.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-6))


def covariance(sigma, angle):
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ np.diag(np.square(sigma)) @ turn.T


SIGMA, ANGLE = (1.3, 2.2), 0.6
POINTS = np.stack(np.meshgrid(np.arange(-5, 6), np.arange(-5, 6)), -1)  # (y, x, (x, y))
DISTANCE = np.einsum("...i,ij,...j", POINTS, np.linalg.inv(covariance(SIGMA, ANGLE)), POINTS)
RADIUS = np.hypot(POINTS[..., 0], POINTS[..., 1])


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (
            Kernel("gaussian", 11, SIGMA, ANGLE),
            scipy.stats.multivariate_normal([0, 0], covariance(SIGMA, ANGLE)).pdf(POINTS),
        ),
        (Kernel("generalized", 11, SIGMA, ANGLE, beta=2.5), np.exp(-0.5 * DISTANCE**2.5)),
        (Kernel("generalized", 11, SIGMA, ANGLE, beta=0.6), np.exp(-0.5 * DISTANCE**0.6)),
        (Kernel("plateau", 11, SIGMA, ANGLE, beta=1.7), 1 / (1 + DISTANCE**1.7)),
        (
            Kernel("sinc", 11, cutoff=1.4),
            np.where(
                RADIUS == 0,
                1.4**2 / (4 * math.pi),
                1.4 * scipy.special.j1(1.4 * RADIUS) / (2 * math.pi * np.where(RADIUS == 0, 1, RADIUS)),
            ),
        ),
    ],
)
def test_kernels_are_their_formulas(kernel, expected):
    weights = kernel.weights()
    assert weights.shape == (1, 11, 11)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights[0].numpy(), expected / expected.sum(), atol=1e-7)


def test_special_cases_of_kernels_agree():
    gaussian = Kernel("gaussian", 13, (1.5, 1.5)).weights()
    torch.testing.assert_close(Kernel("generalized", 13, (1.5, 1.5), 0.9, 1.0).weights(), gaussian)
    impulse = np.zeros((13, 13))
    impulse[6, 6] = 1
    expected = scipy.ndimage.gaussian_filter(impulse, 1.5, truncate=6 / 1.5)
    np.testing.assert_allclose(gaussian[0].numpy(), expected, atol=1e-7)
    tiny = Kernel("gaussian", 7, (0.2, 0.2)).weights()[0]
    assert tiny[3, 3] > 0.999


def test_a_sinc_passes_low_frequencies_and_stops_high_ones():
    spectrum = np.abs(np.fft.fft2(Kernel("sinc", 21, cutoff=math.pi / 2).weights()[0].numpy(), (64, 64)))
    frequency = np.abs(np.fft.fftfreq(64))[:, None] ** 2 + np.abs(np.fft.fftfreq(64))[None] ** 2
    radius = 2 * math.pi * np.sqrt(frequency)
    assert spectrum[radius < math.pi / 2 * 0.6].min() > 0.8
    assert spectrum[radius > math.pi / 2 * 1.3].max() < 0.1


@pytest.mark.parametrize("kernel", [Kernel("gaussian", 21, SIGMA, ANGLE), Kernel("plateau", 7), Kernel("sinc", 13)])
def test_a_blur_is_scipys_with_a_mirrored_border(kernel):
    x = to_tensor(make_picture(40, 31, 3))
    weights = kernel.weights()[0].numpy()
    expected = [scipy.ndimage.correlate(channel.numpy(), weights, mode="mirror") for channel in x[0]]
    np.testing.assert_allclose(blur(x, kernel)[0].numpy(), np.stack(expected), atol=2e-6)
    assert blur(x, None) is x


@pytest.mark.parametrize("quality", [5, 30, 49, 50, 75, 95])
@pytest.mark.parametrize("size", [(96, 112), (75, 61)])
def test_jpeg_is_that_of_files(quality, size):
    """Few coefficients lie so near to a half that libjpeg's integers round them otherwise."""
    pixels = make_picture(*size, 4)
    found, expected = to_pixels(jpeg(to_tensor(pixels), quality)), through_a_file(pixels, quality)
    assert psnr(found, expected) > 40
    assert psnr(found, pixels) == pytest.approx(psnr(expected, pixels), abs=0.12)


def test_jpeg_loses_what_a_file_loses_where_soft_rounding_keeps_some():
    from kornia.enhance import jpeg_codec_differentiable

    ours, soft = [], []
    for seed in range(6):
        pixels = make_picture(96, 96, seed)
        x, at_stake = to_tensor(pixels), psnr(through_a_file(pixels, 40), pixels)
        ours.append(psnr(to_pixels(jpeg(x, 40)), pixels) - at_stake)
        soft.append(psnr(to_pixels(jpeg_codec_differentiable(x, torch.tensor([40.0]))), pixels) - at_stake)
    assert abs(np.mean(ours)) < 0.05
    assert np.mean(soft) > 0.2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 100), st.integers(0, 999))
def test_jpeg_takes_every_size_and_quality(height, width, quality, seed):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    y = jpeg(x, quality)
    assert y.shape == x.shape
    torch.testing.assert_close(y * 255, (y * 255).round(), atol=1e-4, rtol=0)
    assert 0 <= y.min() <= y.max() <= 1
    assert torch.equal(jpeg(x[1:], quality), y[1:])


def test_luminance_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("YCbCr"))[..., 0]
    np.testing.assert_allclose(luminance(to_tensor(pixels))[0, 0].numpy() * 255, expected, atol=1)

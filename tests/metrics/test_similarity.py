from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import correlate
from skimage import data
from skimage.metrics import structural_similarity

from densekit.errors import DataError
from densekit.metrics import ms_ssim, ssim
from densekit.metrics.sr_protocols import compared
from densekit.resize import imresize

WEIGHTS = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]


@pytest.fixture(scope="module")
def astronaut():
    hr = data.astronaut()
    return imresize(imresize(hr, 1 / 4), 4), hr


def ms_ssim_by_the_release(a, b):
    """The authors' program, step by step: 11 x 11 windows, and 2 x 2 means with symmetric borders between scales."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = 2.55**2, 7.65**2
    contrasts = []
    for _ in WEIGHTS:
        (ma, mb, aa, bb, ab) = (correlate(x, window)[5:-5, 5:-5] for x in (a, b, a * a, b * b, a * b))
        contrast = (2 * (ab - ma * mb) + c2) / (aa - ma**2 + bb - mb**2 + c2)
        whole = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1) * contrast
        contrasts.append(contrast.mean())
        quarter = np.full((2, 2), 1 / 4)
        a, b = (correlate(x, quarter, mode="reflect", origin=-1)[::2, ::2] for x in (a, b))
    return np.prod(np.array([*contrasts[:-1], whole.mean()]) ** WEIGHTS)


@pytest.mark.parametrize("size", [(361, 400), (177, 195)])
def test_ms_ssim_equals_the_program_of_its_authors(astronaut, size):
    sr, hr = (image[: size[0], : size[1]] for image in astronaut)
    for protocol in ("rdn-y", "rgb"):
        a, b = compared(sr, hr, protocol, 4, 1)
        expected = np.mean([ms_ssim_by_the_release(a[..., c], b[..., c]) for c in range(a.shape[2])])
        assert ms_ssim(sr, hr, protocol=protocol, scale=4) == pytest.approx(expected, abs=1e-12)


def test_ms_ssim_of_the_astronaut_is_that_of_three_other_libraries(astronaut):
    # pytorch-msssim 1.0.0, piq 0.8.0 and torchmetrics 1.9.0 on the same planes: 0.966885, 0.966885, 0.966896
    assert ms_ssim(*astronaut, scale=4) == pytest.approx(0.966892, abs=1e-6)


def test_ssim_of_the_astronaut_is_that_of_scikit_image(astronaut):
    a, b = (planes[..., 0] for planes in compared(*astronaut, "rdn-y", 4, 1))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(*astronaut, scale=4) == pytest.approx(structural_similarity(a, b, **settings), abs=1e-12)


def test_equal_pictures_score_one_and_inverted_ones_zero():
    picture = np.random.default_rng(0).integers(0, 256, (180, 190, 3), dtype=np.uint8)
    assert ms_ssim(picture, picture, scale=2) == pytest.approx(1, abs=1e-12)
    assert ms_ssim(255 - picture, picture, scale=2) == 0  # a negative contrast has no real power


def test_too_small_a_picture_is_refused_in_one_line():
    picture = np.zeros((164, 300, 3), np.uint8)
    assert ms_ssim(np.pad(picture, ((1, 0), (0, 0), (0, 0))), np.pad(picture, ((1, 0), (0, 0), (0, 0))), scale=2) == 1
    with pytest.raises(DataError, match=r"^found pictures of 164 x 300 pixels; expected at least 165 each way, since"):
        ms_ssim(picture, picture, scale=2)

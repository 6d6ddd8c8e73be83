from __future__ import annotations

import csv
import math
from pathlib import Path

import kornia
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from densekit.errors import ConfigError, DataError
from densekit.metrics import PROTOCOLS, explain, lr_consistency, psnr, ssim
from densekit.metrics.sr_protocols import compared
from densekit.resize import MODES, imresize

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")


def read(path: Path):
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))  # the protocol replicates grey files


def cropped(image, scale: int):
    height, width = (n - n % scale for n in image.shape[:2])
    return image[:height, :width]


def pair(height: int = 60, width: int = 70, channels: int = 3):
    """A smooth picture and a noisy one, so that SSIM lies well inside its range."""
    rng = np.random.default_rng(0)
    smooth = imresize(rng.integers(0, 256, (height // 5, width // 5, channels), dtype=np.uint8), 5)
    noisy = np.clip(smooth + rng.normal(0, 15, smooth.shape), 0, 255).astype(np.uint8)
    return noisy, smooth


@needs_shared_data
def test_the_table_of_the_rdn_authors_comes_out_in_all_its_digits():
    rows = list(csv.DictReader((SHARED / "rdn_set5_sr" / "psnr_ssim.csv").read_text().splitlines()))
    assert len(rows) == 15
    for row in rows:
        scale, name = int(row["scale"]), row["image"]
        sr = read(next((SHARED / "rdn_set5_sr" / f"x{scale}").glob(f"{name}*.png")))
        hr = cropped(read(SHARED / "set5" / "HR" / f"{name}.png"), scale)
        assert psnr(sr, hr, scale=scale) == pytest.approx(float(row["psnr_y"]), abs=1e-6)
        assert ssim(sr, hr, scale=scale) == pytest.approx(float(row["ssim_y"]), abs=1e-6)


@needs_shared_data
@pytest.mark.parametrize(
    ("folder", "scale", "decibels", "similarity"),
    [
        ("set5", 2, 33.674, 0.9303),
        ("set5", 3, 30.405, 0.8689),
        ("set5", 4, 28.430, 0.8111),
        ("set14", 2, 30.326, 0.8699),
        ("set14", 3, 27.634, 0.7759),
        ("set14", 4, 26.091, 0.7048),
    ],
)
def test_bicubic_upscaling_scores_as_measured(folder, scale, decibels, similarity):
    scores = []
    for path in sorted((SHARED / folder / f"LRx{scale}").glob("*.png")):
        hr = cropped(read(SHARED / folder / "HR" / path.name), scale)
        sr = imresize(read(path), scale)
        scores.append((psnr(sr, hr, scale=scale), ssim(sr, hr, scale=scale)))
    assert np.mean(scores, axis=0) == pytest.approx([decibels, similarity], abs=6e-4)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_psnr_and_ssim_equal_those_of_scikit_image(scale):
    sr, hr = pair()
    inside = (slice(scale, -scale), slice(scale, -scale))
    a, b = (rgb2ycbcr(image)[..., 0][inside] for image in (sr, hr))
    assert psnr(sr, hr, scale=scale) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-5)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert 0.2 < ssim(sr, hr, scale=scale) < 0.9
    assert ssim(sr, hr, scale=scale) == pytest.approx(structural_similarity(a, b, **settings), abs=1e-6)
    a, b = sr[inside].astype(float), hr[inside].astype(float)
    found = psnr(sr, hr, scale=scale, protocol="rgb")
    assert found == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-9)
    found = ssim(sr, hr, scale=scale, protocol="rgb")
    assert found == pytest.approx(structural_similarity(a, b, channel_axis=2, **settings), abs=1e-9)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equal_pictures_score_infinity_and_one(protocol):
    image = pair()[1]
    assert psnr(image, image, protocol=protocol, scale=2) == math.inf
    assert ssim(image, image, protocol=protocol, scale=2) == pytest.approx(1, abs=1e-12)


def test_a_fault_in_the_border_does_not_count():
    sr, hr = pair()
    spoilt = sr.copy()
    spoilt[:3], spoilt[-3:], spoilt[:, :3], spoilt[:, -3:] = 0, 0, 255, 255
    assert psnr(spoilt, hr, scale=3) == psnr(sr, hr, scale=3)
    assert ssim(spoilt, hr, scale=3) == ssim(sr, hr, scale=3)
    assert psnr(spoilt, hr, scale=2) < psnr(sr, hr, scale=2) - 0.1


def test_a_tensor_scores_as_its_array():
    sr, hr = pair()
    assert psnr(torch.from_numpy(sr), torch.from_numpy(hr), scale=2) == psnr(sr, hr, scale=2)


def test_psnr_and_ssim_equal_those_of_kornia_given_the_same_planes():
    sr, hr = pair()
    a, b = (torch.from_numpy(planes.transpose(2, 0, 1)[None].copy()) for planes in compared(sr, hr, "rdn-y", 2, 1))
    assert psnr(sr, hr, scale=2) == pytest.approx(float(kornia.metrics.psnr(a, b, 255.0)), abs=1e-9)
    window = kornia.metrics.ssim(a, b, 11, max_val=255.0, padding="valid").mean()
    assert ssim(sr, hr, scale=2) == pytest.approx(float(window), abs=1e-9)
    same = float(kornia.metrics.ssim(a, b, 11, max_val=255.0).mean())  # its default counts reflected borders
    assert abs(same - ssim(sr, hr, scale=2)) > 1e-3


def test_explain_holds_every_protocol_the_default_one_first():
    sr, hr = pair()
    scores = explain(sr, hr, scale=2)
    assert [score.protocol for score in scores] == list(PROTOCOLS)
    assert scores[0] == ("rdn-y", psnr(sr, hr, scale=2), ssim(sr, hr, scale=2))
    for name, decibels, similarity in scores:
        assert decibels == psnr(sr, hr, protocol=name, scale=2)
        assert similarity == ssim(sr, hr, protocol=name, scale=2)


def test_explain_needs_a_window_inside_the_widest_border():
    small = pair(30, 30)
    with pytest.raises(DataError, match=r"30 x 30 pixels; expected at least 31 each way, since protocol edsr-div2k"):
        explain(*small, scale=4)


def test_an_original_agrees_with_its_own_reduction():
    hr = pair()[1]
    for mode in MODES:
        assert lr_consistency(hr, imresize(hr, 1 / 2, mode), 2, mode) == (math.inf, 0)


def test_lr_consistency_is_the_psnr_of_the_reduced_picture():
    sr, hr = pair()
    lr = imresize(hr, 1 / 2)
    difference = imresize(sr, 1 / 2).astype(float) - lr
    found = lr_consistency(sr, lr, 2)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / np.square(difference).mean()), abs=1e-9)
    assert found.max_difference == np.abs(difference).max() > 5


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"scale": 3},
            DataError,
            "result of shape (60, 70, 3) and an input of shape (30, 35, 3); expected",
        ),
        ({"scale": 0}, ConfigError, "scale 0 is not possible"),
        ({"mode": "bicubic"}, ConfigError, "resize mode 'bicubic' is unknown"),
        ({"lr": np.zeros((30, 35, 3))}, DataError, "found an input of float64; expected uint8, clipped and rounded"),
    ],
)
def test_what_cannot_agree_is_refused_in_one_line(change, error, text):
    sr, hr = pair()
    with pytest.raises(error) as caught:
        lr_consistency(**{"sr": sr, "lr": imresize(hr, 1 / 2), "scale": 2, **change})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_grey_scores_as_three_equal_channels():
    sr, hr = (image[..., 0] for image in pair())
    colour = [np.repeat(image[..., None], 3, axis=2) for image in (sr, hr)]
    for protocol in PROTOCOLS.keys() - {"grey-y"}:
        for score in (psnr, ssim):
            expected = score(*colour, protocol=protocol, scale=2)
            assert score(sr, hr, protocol=protocol, scale=2) == pytest.approx(expected, abs=1e-6)
            assert score(sr[..., None], hr[..., None], protocol=protocol, scale=2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("score", [psnr, ssim])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"protocol": "rdn_y"}, ConfigError, "protocol 'rdn_y' is unknown; expected one of rdn-y, rgb, basicsr-y"),
        ({"scale": 0}, ConfigError, "scale 0 is not possible; expected an integer of at least 1"),
        (
            {"sr": pair()[0][:-1]},
            DataError,
            "found a result of shape (59, 70, 3) and an original of shape (60, 70, 3); expected equal shapes",
        ),
        (
            {"sr": pair()[0] / 255},
            DataError,
            "found a result of float64; expected uint8, clipped and rounded",
        ),
        (
            {"scale": 30},
            DataError,
            "found pictures of 60 x 70 pixels; expected at least {} each way, since protocol rdn-y crops 30 from",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(score, change, error, text):
    sr, hr = pair()
    with pytest.raises(error) as caught:
        score(**{"sr": sr, "hr": hr, "scale": 2, **change})
    assert text.format(61 if score is psnr else 71) in str(caught.value)
    assert "\n" not in str(caught.value)

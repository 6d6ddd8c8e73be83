"""NIQE; the statistics of good photographs are not in the repository, so random ones of the same kind stand in."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math

import numpy as np
import pytest
from scipy.io import savemat
from scipy.ndimage import convolve
from scipy.special import gamma
from skimage import data

from densekit.errors import ConfigError, DataError
from densekit.metrics import niqe
from densekit.metrics.naturalness import niqe_features
from densekit.resize import imresize


@pytest.fixture(scope="module")
def statistics():
    features = np.vstack([niqe_features(picture) for picture in (data.coffee(), data.chelsea(), data.astronaut())])
    return features.mean(axis=0), np.cov(features, rowvar=False)


@pytest.fixture(scope="module")
def model(statistics, tmp_path_factory):
    path = tmp_path_factory.mktemp("niqe") / "niqe_pris_params.npz"
    np.savez(path, mu_pris_param=statistics[0][None], cov_pris_param=statistics[1])
    return path


def fit_by_the_release(values):
    """estimateaggdparam.m"""
    gam = np.arange(0.2, 10.001, 0.001)
    r_gam = gamma(2 / gam) ** 2 / (gamma(1 / gam) * gamma(3 / gam))
    left, right = (np.sqrt(np.mean(part**2)) for part in (values[values < 0], values[values > 0]))
    ratio = left / right
    rhat = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    rhatnorm = rhat * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alpha = gam[np.argmin((r_gam - rhatnorm) ** 2)]
    width = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    return alpha, left * width, right * width


def features_by_the_release(grey):
    """computefeature.m over the blocks of computequality.m"""
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    rows = []
    plane = grey[: grey.shape[0] // 96 * 96, : grey.shape[1] // 96 * 96]
    for size in (96, 48):
        mean = convolve(plane, window, mode="nearest")
        deviation = np.sqrt(np.abs(convolve(plane**2, window, mode="nearest") - mean**2))
        normalised = (plane - mean) / (deviation + 1)
        features = []
        for top in range(0, plane.shape[0], size):
            for left in range(0, plane.shape[1], size):
                block = normalised[top : top + size, left : left + size]
                alpha, low, high = fit_by_the_release(block)
                feature = [alpha, (low + high) / 2]
                for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    alpha, low, high = fit_by_the_release(block * np.roll(block, shift, (0, 1)))
                    feature += [alpha, (high - low) * gamma(2 / alpha) / gamma(1 / alpha), low, high]
                features.append(feature)
        rows.append(features)
        plane = imresize(plane, 1 / 2, "matlab-double")
    return np.hstack(rows)


def test_features_equal_those_of_the_release():
    picture = data.chelsea()
    grey = np.floor(picture @ [0.298936021293775, 0.587043074451121, 0.114020904255103] + 0.5)
    np.testing.assert_allclose(niqe_features(picture), features_by_the_release(grey), atol=1e-9)
    assert niqe_features(picture).shape == (3 * 4, 36)


def test_the_distance_is_that_of_the_two_gaussians(statistics, model):
    features = niqe_features(data.coffee())
    difference = features.mean(axis=0) - statistics[0]
    inverse = np.linalg.pinv((np.cov(features, rowvar=False) + statistics[1]) / 2)
    assert niqe(data.coffee(), model=model) == pytest.approx(math.sqrt(difference @ inverse @ difference), abs=1e-9)


def test_damage_of_every_kind_scores_worse(model):
    picture = data.astronaut()
    blurred = imresize(imresize(picture, 1 / 4), 4)
    noisy = np.clip(picture + np.random.default_rng(0).normal(0, 25, picture.shape), 0, 255).astype(np.uint8)
    assert niqe(picture, model=model) < niqe(noisy, model=model)
    assert niqe(picture, model=model) < niqe(blurred, model=model)


def test_the_file_of_the_authors_reads_as_that_of_basicsr(statistics, model, tmp_path):
    path = tmp_path / "modelparameters.mat"
    savemat(path, {"mu_prisparam": statistics[0][None], "cov_prisparam": statistics[1]})
    assert niqe(data.coffee(), model=str(path)) == pytest.approx(niqe(data.coffee(), model=model), abs=1e-9)


def test_the_file_of_an_installed_basicsr_is_found_without_running_it(model, tmp_path, monkeypatch):
    (tmp_path / "basicsr" / "metrics").mkdir(parents=True)
    (tmp_path / "basicsr" / "__init__.py").write_text("raise ImportError('it does not run today')")
    (tmp_path / "basicsr" / "metrics" / "niqe_pris_params.npz").write_bytes(model.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    assert niqe(data.coffee()) == niqe(data.coffee(), model=model)


def test_without_a_file_the_error_says_where_to_get_one(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^niqe needs the statistics of good photo.*; give model=FILE") as caught:
        niqe(data.coffee())
    assert "\n" not in str(caught.value)


def test_a_grey_picture_scores_as_three_equal_channels(model):
    grey = data.camera()
    expected = niqe(grey[..., None].repeat(3, axis=2), model=model)
    assert niqe(grey, model=model) == niqe(grey[..., None], model=model) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (np.zeros((95, 900, 3), np.uint8), "found a picture of 95 x 900 pixels; expected at least 2 blocks of 96 x 96"),
        (np.zeros((192, 192, 3), np.uint8), "found 0 blocks of 96 x 96 pixels with texture; expected at least 2"),
        (np.zeros((192, 192, 2), np.uint8), "found a picture of shape (192, 192, 2); expected (H, W, 3)"),
        (np.zeros((192, 192, 3)), "found a picture of float64; expected uint8"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(model, picture, text):
    with pytest.raises(DataError) as caught:
        niqe(picture, model=model)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.mat").write_text("no matrix")
    np.savez(tmp_path / "other.npz", mean=np.zeros(36))
    np.savez(tmp_path / "short.npz", mu_pris_param=np.zeros(18), cov_pris_param=np.zeros((18, 18)))
    for name, text in {
        "text.npz": "cannot be read as statistics for niqe",
        "text.mat": "cannot be read as statistics for niqe",
        "missing.npz": "cannot be read as statistics for niqe (FileNotFoundError)",
        "other.npz": "holds no statistics for niqe; expected a mean of 36",
        "short.npz": "holds no statistics for niqe; expected a mean of 36",
    }.items():
        with pytest.raises(ConfigError) as caught:
            niqe(data.coffee(), model=tmp_path / name)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)

"""LPIPS and DISTS with stand-ins for their packages, whose weights come over the network."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from densekit.errors import ConfigError, DataError
from densekit.metrics import dists, lpips, perceptual


class Distance(nn.Module):
    """The mean difference, and what it was asked."""

    seen: list

    def __init__(self, **arguments):
        super().__init__()
        self.arguments = arguments

    def forward(self, a, b):
        Distance.seen.append((self.arguments, a, b, self.training, torch.is_inference_mode_enabled()))
        return (a - b).abs().mean().reshape(1, 1, 1, 1)


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    Distance.seen = []
    perceptual._build.cache_clear()
    for package, name in (("lpips", "LPIPS"), ("piq", "DISTS")):
        module = types.ModuleType(package)
        setattr(module, name, Distance)
        monkeypatch.setitem(sys.modules, package, module)
    yield
    perceptual._build.cache_clear()


def pictures(*shape: int):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2)]


def test_lpips_gives_its_network_both_pictures_from_minus_one_to_one():
    sr, hr = pictures(40, 50, 3)
    assert lpips(sr, hr) == pytest.approx(np.abs(sr / 127.5 - hr / 127.5).mean(), rel=1e-5)
    assert lpips(sr, sr, network="vgg") == 0
    (arguments, a, b, training, inference), (other, *_) = Distance.seen
    assert arguments == {"net": "alex", "version": "0.1", "verbose": False}
    assert other["net"] == "vgg"
    assert (training, inference) == (False, True)
    for tensor, picture in ((a, sr), (b, hr)):
        expected = torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)[None].float()
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_dists_gives_its_network_both_pictures_from_zero_to_one():
    sr, hr = pictures(40, 50, 3)
    assert dists(sr, hr) == pytest.approx(np.abs(sr / 255 - hr / 255).mean(), rel=1e-5)
    assert Distance.seen[0][1].shape == (1, 3, 40, 50)


def test_grey_counts_as_three_equal_channels():
    sr, hr = pictures(40, 50)
    assert lpips(sr, hr) == lpips(sr[..., None], hr[..., None])
    assert Distance.seen[0][1].shape == (1, 3, 40, 50)


def test_a_network_is_built_once():
    sr, hr = pictures(40, 50, 3)
    lpips(sr, hr)
    lpips(sr, hr)
    assert Distance.seen[0][0] is Distance.seen[1][0]


@pytest.mark.parametrize(("score", "package", "name"), [(lpips, "lpips", "LPIPS"), (dists, "piq", "DISTS")])
def test_a_missing_package_is_named_in_one_line(monkeypatch, score, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        score(*pictures(40, 50, 3))
    assert str(caught.value) == f"{name} needs the package {package}; run: pip install 'densekit[metrics]'"


@pytest.mark.parametrize(("score", "package", "name"), [(lpips, "lpips", "LPIPS"), (dists, "piq", "DISTS")])
def test_weights_that_cannot_be_fetched_are_told_in_one_line(monkeypatch, score, package, name):
    def fail(**arguments):
        raise OSError("no route\nto host")

    monkeypatch.setattr(sys.modules[package], name, fail)
    with pytest.raises(ConfigError) as caught:
        score(*pictures(40, 50, 3))
    assert str(caught.value).startswith(f"{package} could not make {name} (OSError: no route to host); its weights are")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (((40, 50, 3), (40, 49, 3)), "a result of shape (40, 50, 3) and an original of shape (40, 49, 3); expected"),
        (((31, 50, 3), (31, 50, 3)), "of shape (31, 50, 3); expected (H, W, 3), (H, W, 1) or (H, W), at least 32"),
        (((40, 50, 2), (40, 50, 2)), "of shape (40, 50, 2); expected (H, W, 3)"),
    ],
)
def test_what_cannot_be_compared_is_refused(shapes, text):
    with pytest.raises(DataError) as caught:
        lpips(*(np.zeros(shape, np.uint8) for shape in shapes))
    assert text in str(caught.value)


def test_floats_and_unknown_networks_are_refused():
    sr, hr = pictures(40, 50, 3)
    with pytest.raises(DataError, match="found a result of float64; expected uint8"):
        dists(sr / 255, hr)
    with pytest.raises(ConfigError, match="LPIPS network 'resnet' is unknown; expected one of alex, vgg, squeeze"):
        lpips(sr, hr, network="resnet")

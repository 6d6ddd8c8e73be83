from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from densekit.cards import Card
from densekit.encoders import Found, build, encoder_in
from densekit.encoders import features as module
from densekit.encoders.features import Extractor, stack, write_features
from densekit.errors import CheckpointError, ConfigError, DeviceError, ImageError
from densekit.image import Picture
from densekit.models import create_model
from densekit.resize import imresize
from tests.encoders.conftest import TINY


@pytest.fixture
def found(lived):
    """An encoder with weights that are not those of the start."""
    net = lived(create_model("densenet", **TINY, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)))
    return encoder_in(net, Card("encoder", "densenet", {**TINY, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}))


def picture(height=70, width=90, channels=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return Picture(rng.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True))


def direct(found, tap, x):
    """Returns what the encoder itself makes of a tensor (C, H, W)."""
    with torch.no_grad():
        return found.encoder((tap,)).eval()(x[None])[0][0].numpy()


def test_features_are_what_the_encoder_makes_of_the_pixels(found):
    given = picture()
    x = torch.from_numpy(given.pixels.transpose(2, 0, 1).astype(np.float32) / 255)
    made = Extractor(found, taps=(3, 1), pool="none")(given)
    assert list(made) == ["tap1", "tap3"]
    for tap in (1, 3):
        np.testing.assert_allclose(made[f"tap{tap}"], direct(found, tap, x), rtol=1e-4, atol=1e-5)


def test_the_deepest_tap_is_pooled_by_default(found):
    given = picture()
    maps = Extractor(found, pool="none")(given)["tap4"]
    mean = Extractor(found)(given)["tap4"]
    largest = Extractor(found, pool="max")(given)["tap4"]
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, maps.mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(largest, maps.max((1, 2)))


def test_grey_16_bit_and_resized_pictures_go_in_as_in_prediction(found):
    grey = picture(channels=1)
    colour = Picture(grey.pixels.repeat(3, axis=2))
    np.testing.assert_array_equal(Extractor(found)(grey)["tap4"], Extractor(found)(colour)["tap4"])
    deep = Picture(colour.pixels.astype(np.uint16) * 257)
    np.testing.assert_allclose(Extractor(found)(deep)["tap4"], Extractor(found)(colour)["tap4"], rtol=1e-5)
    resized = Picture(imresize(colour.pixels, None, size=(64, 96)))
    sized = Extractor(found, size=(64, 96))(colour)["tap4"]
    np.testing.assert_array_equal(sized, Extractor(found)(resized)["tap4"])


def test_what_it_cannot_take_is_refused(found, monkeypatch):
    with pytest.raises(ImageError, match="90x20 pixels; the encoder needs 32x32 or more; use --size"):
        Extractor(found)(picture(20, 90))
    with pytest.raises(ConfigError, match="pool='mean': expected avg, max, none"):
        Extractor(found, pool="mean")
    with pytest.raises(ConfigError, match="densenet: no tap 9; there are 0, 1, 2, 3, 4"):
        Extractor(found, taps=(9,))
    with pytest.raises(ConfigError, match="densenet takes 4 channels, but pictures have 1 or 3"):
        Extractor(Found("densenet", {**TINY, "in_channels": 4}))
    monkeypatch.setattr(module, "available_memory", lambda _: 1000)
    with pytest.raises(DeviceError, match=r"features of 90x70 pixels need \S+ GB of memory; use --size"):
        Extractor(found)(picture())


def test_weights_that_give_no_numbers_are_refused(found):
    with torch.no_grad():
        found.net.features.norm5.bias[3] = float("inf")
    with pytest.raises(CheckpointError, match="values that are not finite; use another checkpoint"):
        Extractor(found)(picture())


def test_pictures_of_several_sizes_do_not_stack_unless_pooled(found):
    pair = [picture(64, 64), picture(96, 64, seed=1)]
    pooled = [Extractor(found)(each) for each in pair]
    np.testing.assert_array_equal(stack(pooled)["tap4"][1], pooled[1]["tap4"])
    with pytest.raises(ConfigError, match="tap4 has 2 shapes, which do not fit into one array; use --size or --pool"):
        stack([Extractor(found, pool="none")(each) for each in pair])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_of_features_can_be_read_by_anyone_and_is_always_the_same(tmp_path, suffix):
    arrays = {"tap1": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)}
    about = {"names": ["a.png", "ü/b.png", "c.png"], "model": "x"}
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        write_features(path, arrays, about)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == ".npz":
        with np.load(paths[0]) as file:  # which unpickles nothing unless it is asked to
            told, read = json.loads(str(file["densekit"])), file["tap1"]
    else:
        with safe_open(paths[0], "np") as file:
            told, read = json.loads(file.metadata()["densekit"]), file.get_tensor("tap1")
    assert told == about
    np.testing.assert_array_equal(read, arrays["tap1"])


def test_encoders_of_every_kind_give_features(tiny):
    for name in (tiny, "timm:test_resnet"):
        made = Extractor(Found(name, {}, seed=3))(picture(64, 64))
        (feature,) = made.values()
        assert feature.shape == (build(name).channels[-1],)
        assert feature.std() > 0

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from densekit.cards import Card
from densekit.errors import CheckpointError, ConfigError
from densekit.image import Picture, write_image
from densekit.models import create_model
from densekit.predict import Segmenter, load
from densekit.predict.overlay import PALETTE


@pytest.fixture(scope="module")
def segmenter(tiny_seg) -> Segmenter:
    return load(tiny_seg, device="cpu")


class Brightness(nn.Module):
    """Tells dark, middle and bright pixels apart, each by itself; refuses what is smaller than 8 pixels."""

    scale, multiple_of, receptive_field, min_size = 1, 1, 0, 8

    def __init__(self, num_classes: int = 3, in_channels: int = 3, *, fails_in: tuple[torch.dtype, ...] = ()) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.linspace(0, 1, num_classes))
        self.fails_in = fails_in

    def forward(self, x):
        assert min(x.shape[-2:]) >= self.min_size
        y = -(x.mean(dim=1, keepdim=True) - self.centres[:, None, None]).abs()
        return y * torch.nan if x.dtype in self.fails_in else y


def by_brightness(precision: str = "fp32", fails_in: tuple[torch.dtype, ...] = (), **arguments) -> Segmenter:
    net, card = Brightness(fails_in=fails_in, **arguments), Card("seg", "fc_densenet", arguments)
    return Segmenter(net, card, device="cpu", precision=precision)


def nearest_third(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels.mean(axis=2) / 255 * 2).astype(np.uint8)


def test_ids_are_the_largest_logits(segmenter, rng):
    image = rng.integers(0, 256, (37, 52, 3), np.uint8)
    logits = segmenter.net(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    ids = segmenter.predict(image)
    assert ids.dtype == np.uint8
    assert np.array_equal(ids, logits[0].argmax(0).numpy())
    assert len(np.unique(ids)) > 1


def test_one_logit_is_foreground_where_it_is_positive(tiny_binary, rng):
    binary = load(tiny_binary, device="cpu")
    image = rng.integers(0, 256, (30, 33, 3), np.uint8)
    logits = binary.net(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    with torch.no_grad():
        binary.net.classifier.bias.sub_(logits.median())
    assert np.array_equal(binary.predict(image), (logits[0, 0] > logits.median()).numpy())
    assert binary.classes == ("background", "nucleus")


@given(height=st.integers(1, 40), width=st.integers(1, 40))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_an_image_of_any_size_gets_a_class_for_each_pixel(segmenter, height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    ids = segmenter.predict(image)
    assert ids.shape == (height, width)
    assert ids.max() < 3


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile=st.sampled_from(["auto", "off", 16, 19, 33]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=30, derandomize=True)
def test_windows_change_nothing_where_a_pixel_counts_for_itself(height, width, tile, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert (by_brightness().predict(pixels, tile=tile) != nearest_third(pixels)).mean() <= 0.01  # ties


def test_windows_come_near_the_whole_image(segmenter, rng):
    image = rng.integers(0, 256, (90, 120, 3), np.uint8)
    same = segmenter.predict(image, tile=64) == segmenter.predict(image, tile="off")
    assert same.mean() > 0.95


def test_what_is_smaller_than_the_network_needs_is_continued_at_its_edges(segmenter, rng):
    image = rng.integers(0, 256, (2, 3, 3), np.uint8)
    continued = np.pad(image, ((0, 2), (0, 1), (0, 0)), mode="edge")
    assert np.array_equal(segmenter.predict(image), segmenter.predict(continued)[:2, :3])


# Kinds


def test_a_pil_image_gives_a_palette_image(segmenter, rng):
    image = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    mask = segmenter.predict(image)
    assert (mask.mode, mask.size) == ("P", (30, 20))
    assert mask.getpalette()[:9] == [128, 64, 128, 128, 128, 128, 128, 128, 0]
    assert np.array_equal(np.asarray(mask), segmenter.predict(np.asarray(image)))


@pytest.mark.parametrize("shape", [(3, 9, 14), (1, 9, 14), (2, 3, 9, 14)])
def test_a_tensor_gives_a_tensor_of_ids(segmenter, shape):
    ids = segmenter.predict(torch.rand(shape))
    assert ids.dtype == torch.int64
    assert ids.shape == (*shape[:-3], 9, 14)


def test_a_batch_gives_what_its_images_give_alone(segmenter):
    x = torch.rand(3, 3, 21, 18)
    assert torch.equal(segmenter.predict(x), torch.stack([segmenter.predict(image) for image in x]))


def test_every_kind_of_the_same_pixels_gives_the_same_ids(rng, tmp_path):
    segmenter, grey = by_brightness(), rng.integers(0, 256, (12, 15, 1), np.uint8)
    alpha = rng.integers(0, 256, (12, 15), np.uint8)
    write_image(tmp_path / "a.png", Picture(grey, alpha))
    rgb = grey.repeat(3, axis=2)
    expected = segmenter.predict(rgb)
    kinds = {
        "grey": grey[..., 0],
        "grey and alpha": np.dstack((grey, alpha)),
        "alpha": np.dstack((rgb, alpha)),
        "16 bits": rgb.astype(np.uint16) * 257,
        "float": rgb.astype(np.float32) / 255,
        "file": tmp_path / "a.png",
    }
    for kind, image in kinds.items():
        assert (segmenter.predict(image) == expected).mean() > 0.99, kind  # ties
    assert np.array_equal(segmenter.segment_picture(Picture(rgb)), expected)


def test_a_network_for_one_channel_sees_the_luma_of_colours():
    segmenter = by_brightness(in_channels=1)
    pixels = np.zeros((9, 9, 3), np.uint8)
    pixels[:, :5, 1] = 255  # green: 0.59 in luma, 0.33 in the mean
    pixels[:, 5:, 2] = 255  # blue: 0.11
    assert np.array_equal(segmenter.predict(pixels)[0], [1] * 5 + [0] * 4)


# What a card says and leaves out


def test_a_card_names_the_classes_and_colours(segmenter):
    assert segmenter.classes == ("road", "sky", "tree")
    assert segmenter.palette == ((128, 64, 128), (128, 128, 128), (128, 128, 0))


def test_classes_without_names_or_colours_get_some():
    segmenter = by_brightness(num_classes=30)
    assert segmenter.classes[:2] == ("class 0", "class 1")
    assert (len(segmenter.classes), len(segmenter.palette)) == (30, 30)
    assert segmenter.palette[: len(PALETTE)] == PALETTE


def test_more_classes_than_a_byte_can_tell_apart_are_refused():
    with pytest.raises(
        ConfigError, match=r"^fc_densenet tells 300 classes apart; expected at most 256, the ids of a byte$"
    ):
        by_brightness(num_classes=300)


# Tiles, memory and precision


def test_auto_takes_windows_only_where_the_memory_ends(segmenter, monkeypatch):
    per_pixel = segmenter._runner.bytes_per_pixel
    monkeypatch.setattr("densekit.predict.segment.available_memory", lambda device: 2 * 600**2 * per_pixel)
    assert segmenter.choose_tile(600, 600) is None
    assert segmenter.choose_tile(601, 600) == 512
    assert segmenter.choose_tile(600, 600, batch=4) == 300
    assert segmenter.choose_tile(600, 600, 96) == 96
    assert segmenter.choose_tile(600, 600, "off") is None


def test_a_wrong_tile_is_refused(segmenter):
    with pytest.raises(ConfigError, match=r"^tile 8: expected auto, off or a size of at least 16 pixels$"):
        segmenter.predict(np.full((40, 40, 3), 9, np.uint8), tile=8)


def test_progress_ends_at_the_pixels_in_all(segmenter):
    seen = []
    segmenter.predict(np.full((40, 50, 3), 9, np.uint8), tile=20, on_tile=lambda *report: seen.append(report))
    assert len(seen) > 4
    assert seen[-1][0] == seen[-1][1]


def test_windows_that_are_not_finite_in_half_precision_are_run_again_in_full(rng):
    pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
    segmenter = by_brightness("bf16", fails_in=(torch.bfloat16,))
    with pytest.warns(UserWarning, match="^bf16 gave values that are not finite: those tiles were run again in fp32$"):
        ids = segmenter.predict(pixels)
    assert np.array_equal(ids, by_brightness().predict(pixels))
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(CheckpointError, match=r"^the weights give values that are not finite"),
    ):
        by_brightness(fails_in=(torch.float32,)).predict(pixels)


def test_half_precision_gives_nearly_the_same_ids(tiny_seg, segmenter, rng):
    image = rng.integers(0, 256, (40, 40, 3), np.uint8)
    assert (load(tiny_seg, device="cpu", precision="bf16").predict(image) == segmenter.predict(image)).mean() > 0.97


def test_prediction_uses_the_running_statistics(rng):
    net = create_model("fc_densenet", num_classes=2, num_init_features=4, growth_rate=2, num_pools=1, num_layers=1)
    segmenter = Segmenter(net, Card("seg", "fc_densenet", {"num_classes": 2}), device="cpu")
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    segmenter.predict(rng.integers(0, 256, (16, 16, 3), np.uint8))
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


@pytest.mark.parametrize("image", [np.zeros((16, 16, 3), np.uint8), torch.zeros(3, 16, 16)])
def test_a_model_of_batch_statistics_gives_no_picture_those_of_its_own(image):
    model = Segmenter(Brightness(), Card("seg", "fc_densenet", {}, bn_mode="batch"), device="cpu")
    with pytest.raises(ConfigError, match=r"statistics of its batches.*densekit bn recalibrate"):
        model.predict(image)

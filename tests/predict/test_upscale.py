from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from densekit.cards import Card
from densekit.errors import ConfigError
from densekit.image import Picture
from densekit.models import create_model
from densekit.predict import Upscaler
from densekit.resize import imresize
from densekit.tiling import OutOfMemory


def create(name: str, **arguments) -> Upscaler:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = create_model(name, **arguments)
    return Upscaler(net, Card("sr", name, arguments), device="cpu")


def strong_rdn() -> Upscaler:
    """An RDN whose whole receptive field of 9 pixels tells in the result."""
    upscaler = create("rdn", scale=2, num_features=8, num_blocks=2, num_layers=2, growth_rate=8)
    with torch.no_grad():
        for parameter in upscaler.net.parameters():
            parameter.mul_(1.5 if parameter.ndim > 1 else 1)
        last = upscaler.net.tail[-1]
        last.weight.mul_(8)
        last.bias.fill_(0.5)
    return upscaler


# Exactness


def test_tiles_give_the_picture_that_the_whole_image_gives(smooth):
    upscaler = strong_rdn()
    image = smooth(75, 102)
    whole, tiled = (upscaler.predict(image, tile=tile).astype(int) for tile in ("off", 16))
    differs = np.abs(whole - tiled)
    assert whole.std() > 20
    assert differs.max() <= 1
    assert (differs > 0).mean() <= 1e-4


def test_a_prediction_is_the_network_rounded_half_up(upscaler, smooth):
    image = smooth(20, 31)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    expected = np.floor(upscaler.net(x)[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255 + 0.5)
    assert np.array_equal(upscaler.predict(image), expected.astype(np.uint8))


def test_a_self_ensemble_is_the_mean_over_flips_and_turns_of_the_float_results(upscaler, rng):
    x = torch.from_numpy(rng.random((1, 3, 14, 19), np.float32))
    expected = torch.zeros(1, 3, 28, 38, dtype=torch.float64)
    for axes in ((), (-1,), (-2,), (-1, -2)):
        expected += upscaler.net(x.flip(axes)).flip(axes)
        expected += upscaler.net(x.transpose(-1, -2).flip(axes)).flip(axes).transpose(-1, -2)
    y = upscaler.predict(x, self_ensemble=True)
    assert (y - (expected / 8).clamp(0, 1)).abs().max() < 1e-6
    assert (y - upscaler.predict(x)).abs().max() > 1e-3


@pytest.fixture
def small_parts(monkeypatch) -> None:
    """Cuts images into parts of 24 pixels, with the whole field around each."""
    monkeypatch.setattr("densekit.predict.upscale.SMALLEST_PART", 24)
    monkeypatch.setattr("densekit.predict.upscale.FIELDS_A_PART", 0)


def differences(upscaler: Upscaler, image, **options) -> np.ndarray:
    """Returns by how much a picture in parts and tiles differs from the whole at once."""
    whole = upscaler.predict(image, tile="off", **options)
    assert np.asarray(whole).std() > 0
    return np.abs(np.asarray(whole).astype(float) - np.asarray(upscaler.predict(image, tile=16, **options)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_parts_give_the_picture_that_the_whole_image_gives(smooth, small_parts, channels, dtype):
    image = smooth(61, 85, channels)
    image = (
        image.astype(np.float32) / 99 if dtype == "float32" else image.astype(dtype) * (257 if dtype == "uint16" else 1)
    )
    differs = differences(strong_rdn(), image)
    assert differs.max() <= (1e-4 if dtype == "float32" else 1)
    assert (differs > 1e-4).mean() <= (1e-2 if dtype == "uint16" else 1e-3)


def test_parts_of_tensors_ensembles_and_folded_networks_are_exact_too(smooth, small_parts):
    x = torch.from_numpy(smooth(37, 51)).permute(2, 0, 1)[None].float() / 255
    assert differences(strong_rdn(), x.repeat(2, 1, 1, 1)).max() < 1e-5
    assert differences(strong_rdn(), x[0], self_ensemble=True).max() < 1e-5
    folded = create("rrdbnet", scale=2, num_features=8, num_blocks=1, growth_rate=8, residual_scale=1.0)
    assert differences(folded, x).max() < 1e-5
    luma = create(
        "srdensenet", scale=2, num_blocks=2, num_layers=2, num_features=8, growth_rate=4, bottleneck_features=8
    )
    assert differences(luma, x).max() < 1e-5


def test_parts_come_in_rows_and_hold_every_sample_once(upscaler, smooth, small_parts):
    image = smooth(61, 85, 4)
    seen = np.zeros((122, 170), int)
    corners = []

    def place(top, left, samples):
        assert samples.shape[2] == 4
        corners.append((top, left))
        seen[top : top + samples.shape[0], left : left + samples.shape[1]] += 1

    upscaler.upscale_into(place, Picture(image[..., :3], image[..., 3]), tile=16)
    assert (seen == 1).all()
    assert len(corners) > 9
    assert corners == sorted(corners)


def test_a_part_that_does_not_fit_is_run_in_pieces(smooth, monkeypatch):
    upscaler, image = strong_rdn(), smooth(140, 90)
    whole = upscaler.predict(image, tile="off").astype(int)
    net, refused = upscaler._runner.net, []
    real = type(net).stream

    def limited(net, x, tiles):
        if x.shape[-2] * x.shape[-1] > 100 * 100:
            refused.append(tuple(x.shape))
            raise OutOfMemory("does not fit cpu memory even at tile 64", "cpu")
        return real(net, x, tiles)

    monkeypatch.setattr(type(net), "stream", limited)
    reports = []
    pieces = upscaler.predict(image, tile=64, on_tile=lambda *report: reports.append(report))
    assert refused == [(1, 3, 140, 90)]
    assert np.abs(pieces - whole).max() <= 1
    assert reports[-1] == (140 * 90, 140 * 90)


def test_parts_that_overflow_in_half_precision_are_run_again_in_full(smooth, small_parts):
    upscaler = strong_rdn()
    with torch.no_grad():
        upscaler.net.sfe1.weight.mul_(1e5)
        upscaler.net.sfe1.bias.mul_(1e5)
        upscaler.net.tail[-1].weight.mul_(1e-5)
    image = smooth(40, 50)
    full = Upscaler(upscaler.net, upscaler.card, device="cpu").predict(image)
    half = Upscaler(upscaler.net, upscaler.card, device="cpu", precision="fp16")
    result = half.upscale_picture(Picture(image), tile=16)
    assert result.warnings == ("fp16 gave values that are not finite: those tiles were run again in fp32",)
    assert np.abs(result.pixels.astype(int) - full).max() <= 1
    assert full.std() > 5


def test_parts_and_tiles_follow_the_free_memory(monkeypatch):
    upscaler = strong_rdn()
    for free, expected in ((2**40, None), (2**26, 512), (2**20, 64)):
        monkeypatch.setattr("densekit.predict.upscale.available_memory", lambda device, free=free: free)
        part = upscaler._choose_part(700, 700, 192, 1)
        assert part is None if expected is None else part <= expected
    assert upscaler._choose_part(9000, 700, 192, 1) <= 512
    assert upscaler._choose_part(700, 700, None, 1) is None


@pytest.mark.parametrize("self_ensemble", [False, True])
def test_progress_grows_to_the_pixels_in_all(upscaler, smooth, self_ensemble):
    seen = []
    upscaler.predict(smooth(40, 50), tile=20, self_ensemble=self_ensemble, on_tile=lambda *report: seen.append(report))
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(set(done))
    assert len(done) > 10
    assert set(totals) == {40 * 50}
    assert done[-1] == totals[-1]


def test_predictions_in_two_threads_are_those_of_one(upscaler, smooth):
    images = [smooth(60, 60), smooth(44, 90)]
    alone = [upscaler.predict(image, tile=16) for image in images]
    together: dict[int, list[np.ndarray]] = {0: [], 1: []}

    def work(index: int) -> None:
        for _ in range(3):
            together[index].append(upscaler.predict(images[index], tile=16))

    threads = [threading.Thread(target=work, args=(index,)) for index in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(results) == 3 for results in together.values())
    assert all(np.array_equal(result, alone[index]) for index in together for result in together[index])


# Pixels


def test_grey_stays_grey_and_is_what_equal_channels_would_give(upscaler, smooth):
    grey = smooth(16, 18, 1).astype(np.float32) / 255
    y = upscaler.predict(grey)
    assert y.shape == (32, 36, 1)
    colours = upscaler.predict(grey.repeat(3, axis=2))
    assert np.abs(y[..., 0] - colours @ (65.481, 128.553, 24.966) / 219).max() < 1e-6
    assert upscaler.upscale_picture(Picture(grey)).pixels.shape == (32, 36, 1)


def test_alpha_is_enlarged_by_itself_without_overshoot(upscaler, smooth):
    pixels = smooth(12, 12)
    alpha = np.zeros((12, 12), np.uint8)
    alpha[3:9, 3:9] = 200
    y = upscaler.upscale_picture(Picture(pixels, alpha))
    assert np.array_equal(y.pixels, upscaler.predict(pixels))
    assert np.array_equal(y.alpha, np.minimum(imresize(alpha, 2), 200))
    assert (y.alpha.min(), y.alpha.max()) == (0, 200)


def test_pixels_that_are_given_stay_as_they_are(upscaler, smooth):
    for channels in (1, 3):
        image = smooth(8, 9, channels).astype(np.float32)
        before = image.copy()
        upscaler.predict(image)
        assert np.array_equal(image, before)


def test_a_picture_keeps_what_its_file_carried(upscaler, smooth):
    picture = Picture(smooth(5, 6), icc=b"profile", exif=b"Exif\0\0", format="TIFF", warnings=("a line",))
    y = upscaler.upscale_picture(picture)
    assert (y.icc, y.exif, y.format, y.warnings) == (b"profile", b"Exif\0\0", "TIFF", ("a line",))


def test_16_bits_stay_16_bits(upscaler, rng, smooth):
    deep = (smooth(40, 40).astype(np.uint16) << 8) + rng.integers(0, 256, (40, 40, 3), np.uint16)
    y = upscaler.predict(deep)
    assert len(np.unique(y)) > 4000
    x = torch.from_numpy(deep.astype(np.float32) / 65_535).permute(2, 0, 1)
    expected = np.floor(upscaler.predict(x).permute(1, 2, 0).numpy().astype(float) * 65_535 + 0.5)
    assert np.abs(y - expected).max() <= 1
    assert np.abs(upscaler.predict((deep >> 8).astype(np.uint8)).astype(float) - y / 257).max() < 3


def test_float_pixels_above_1_are_scaled_for_the_network_and_back(upscaler, smooth):
    image = smooth(8, 9).astype(np.float32)
    high, low = upscaler.predict(4 * image), upscaler.predict(image / image.max())
    assert np.abs(high / (4 * image.max()) - low).max() < 1e-6


# Networks for one channel


def test_a_network_for_luma_takes_grey_as_it_is(rng):
    upscaler = create("srdensenet", scale=2, num_blocks=1, num_layers=1)
    x = torch.from_numpy(rng.random((1, 1, 9, 9), np.float32))
    torch.testing.assert_close(upscaler.predict(x, tile="off"), upscaler.net(x).clamp(0, 1), rtol=0, atol=1e-6)


def test_a_network_for_luma_gives_light_and_bicubic_gives_the_colour(rng):
    upscaler = create("srdensenet", scale=2, num_blocks=1, num_layers=1)
    rgb = rng.random((9, 9, 3)).astype(np.float32)
    weights = np.array([65.481, 128.553, 24.966])
    y = rgb @ weights / 255 + 16 / 255
    net = upscaler.net(torch.from_numpy(y[None, None]).float())[0, 0].double().numpy()
    light = (net - 16 / 255) * 255 / 219
    expected = light[..., None] + imresize(rgb - (rgb @ weights / 219)[..., None], 2)
    assert np.abs(upscaler.predict(rgb) - expected).max() < 1e-5


def test_a_network_for_other_channels_is_refused():
    with pytest.raises(ConfigError, match=r"^rdn takes 4 channels, pictures have 1 or 3; call its \.net on tensors$"):
        create("rdn", scale=2, in_channels=4, out_channels=4, num_features=4, num_blocks=1, num_layers=1, growth_rate=4)


# Tiles


@pytest.mark.parametrize("tile", [15, 0, -64, "of", 64.0, None, True])
def test_a_wrong_tile_is_refused(upscaler, tile):
    with pytest.raises(ConfigError, match=f"^tile {tile}: expected auto, off or a size of at least 16 pixels$"):
        upscaler.predict(np.full((4, 4, 3), 9, np.uint8), tile=tile)


def test_auto_takes_the_whole_of_a_small_image_and_tiles_of_a_large_one(upscaler, monkeypatch):
    monkeypatch.setattr("densekit.predict.upscale.available_memory", lambda device: 2**33)
    assert upscaler.choose_tile(288, 150) is None
    assert upscaler.choose_tile(4000, 3000) == 192
    assert upscaler.choose_tile(4000, 3000, "off") is None
    assert upscaler.choose_tile(4000, 3000, 96) == 96
    assert upscaler.choose_tile(50, 60, 96) is None


def test_auto_fits_half_of_the_free_memory(upscaler, monkeypatch):
    per_pixel = upscaler._runner.bytes_per_pixel
    budget = 100**2 * per_pixel
    monkeypatch.setattr("densekit.predict.upscale.available_memory", lambda device: 2 * budget)
    tile = upscaler.choose_tile(300, 300)
    assert tile == 100 - 2 * upscaler.context
    assert upscaler.choose_tile(300, 300, batch=2) < tile

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit.datasets.degradation import PRESETS, REAL_ESRGAN, degrade, random_seeds, seed_of, sharpen
from densekit.datasets.degradation.chain import add_noise, blur, follow, resize
from densekit.datasets.degradation.kernels import Kernel
from densekit.datasets.degradation.presets import KERNELS, MODES
from densekit.datasets.degradation.recipes import Noise, Recipe, Round, draw_recipe
from densekit.errors import DataError
from densekit.resize import imresize
from tests.training_data import make_picture

QUIET = Noise("gaussian", 0.0, grey=False)
RECIPES = 3000


def picture(height, width, seed=0):
    """A (1, 3, H, W) picture in [0, 1] with edges, gradients and grain."""
    return torch.from_numpy(make_picture(height, width, seed)).permute(2, 0, 1)[None].float() / 255


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def recipes():
    return [draw_recipe(REAL_ESRGAN, seed) for seed in range(RECIPES)]


def assert_share(found, expected, count):
    """`found` of `count` is what a rate of `expected` gives, within four standard deviations."""
    assert abs(found - count * expected) <= 4 * math.sqrt(count * expected * (1 - expected)) + 1e-9, found / count


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**63 - 1))
def test_every_size_and_scale_gives_levels_of_the_size_asked_for(scale, height, width, seed):
    x = torch.rand(1, 3, height * scale, width * scale, generator=generator(seed % 1000))
    before = x.clone()
    y = degrade(x, scale, [seed])
    assert y.shape == (1, 3, height, width)
    assert y.dtype == torch.float32
    levels = y * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert 0 <= y.min() <= y.max() <= 1  # no NaN either
    assert torch.equal(x, before)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_each_picture_is_a_function_of_itself_and_its_seed_alone(scale):
    x = torch.cat([picture(48, 36, seed) for seed in range(5)])
    seeds = [3, 1, 4, 1, 5]
    torch.manual_seed(1)
    whole = degrade(x, scale, seeds)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(degrade(x, scale, seeds), whole)
    assert torch.equal(torch.cat([degrade(x[i : i + 1], scale, seeds[i : i + 1]) for i in range(5)]), whole)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # the seeds say all; the global state is as before
    assert not torch.equal(degrade(x[:1], scale, [9]), whole[:1])


def test_the_number_of_threads_and_autocast_change_nothing():
    x = torch.cat([picture(64, 64, seed) for seed in range(4)])
    threads = torch.get_num_threads()
    whole = degrade(x, 2, range(4))
    try:
        torch.set_num_threads(3)
        assert torch.equal(degrade(x, 2, range(4)), whole)
    finally:
        torch.set_num_threads(threads)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(degrade(x, 2, range(4)), whole)
    x.requires_grad_()
    assert not degrade(x.contiguous(memory_format=torch.channels_last), 2, range(4)).requires_grad


def test_seeds_come_from_the_global_state_of_torch_and_from_names_for_good():
    torch.manual_seed(7)
    first, second = random_seeds(3), random_seeds(3)
    torch.manual_seed(7)
    assert random_seeds(3) == first != second
    assert all(0 <= seed < 2**63 for seed in first + second)
    assert seed_of("0801.png") == 5007666630885475821
    assert seed_of("0801.png") != seed_of("0802.png")
    assert 0 <= seed_of("\udcff") < 2**63


def test_sides_that_the_scale_does_not_divide_are_refused():
    with pytest.raises(DataError, match=r"pictures of 30x32 cannot be degraded by 4; crop them to a multiple$"):
        degrade(torch.rand(1, 3, 30, 32), 4, [0])


def test_rates_are_those_of_the_preset(recipes):
    for order, rounds in (
        (REAL_ESRGAN.first, [r.first for r in recipes]),
        (REAL_ESRGAN.second, [r.second for r in recipes]),
    ):
        blurs = [r.blur for r in rounds if r.blur]
        assert_share(len(blurs), order.blur_rate, RECIPES)
        sincs = [kernel for kernel in blurs if kernel.kind == "sinc"]
        assert_share(len(sincs), order.sinc_rate, len(blurs))
        bells = [kernel for kernel in blurs if kernel.kind != "sinc"]
        kinds = Counter((k.kind.replace("gaussian", ""), "iso" if k.sigma[0] == k.sigma[1] else "aniso") for k in bells)
        for name, rate in KERNELS.items():
            family, _, shape = name.rpartition("_")
            assert_share(kinds[family, shape], rate, len(bells))
        for index, (low, high) in enumerate(((1, 9), (0, 1), (1, 1))):
            found = sum(low < r.factor < high if low < high else r.factor == 1 for r in rounds)
            assert_share(found, order.resize_rates[index], RECIPES)
        for mode in MODES:
            assert_share(sum(r.mode == mode for r in rounds), 1 / 3, RECIPES)
        assert_share(sum(r.noise.kind == "gaussian" for r in rounds), order.gaussian_rate, RECIPES)
        assert_share(sum(r.noise.grey for r in rounds), order.grey_rate, RECIPES)
        for quality in (30, 95):  # both ends come as often as any other
            assert_share(sum(r.quality == quality for r in rounds), 1 / 66, RECIPES)
    assert_share(sum(r.sinc is not None for r in recipes), REAL_ESRGAN.final_sinc_rate, RECIPES)
    assert_share(sum(r.sinc_before_jpeg for r in recipes), REAL_ESRGAN.sinc_before_jpeg_rate, RECIPES)


def test_ranges_are_filled_and_never_left(recipes):
    def spans(values, low, high):
        values = np.asarray(list(values))
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high

    for order, rounds in (
        (REAL_ESRGAN.first, [r.first for r in recipes]),
        (REAL_ESRGAN.second, [r.second for r in recipes]),
    ):
        bells = [r.blur for r in rounds if r.blur and r.blur.kind != "sinc"]
        spans((k.sigma[0] for k in bells), *order.sigma)
        spans((k.angle for k in bells if k.sigma[0] != k.sigma[1]), -math.pi, math.pi)
        spans((k.beta for k in bells if k.kind == "generalized"), *order.generalized_beta)
        spans((k.beta for k in bells if k.kind == "plateau"), *order.plateau_beta)
        spans((r.factor for r in rounds), *order.resize)
        spans((r.noise.strength for r in rounds if r.noise.kind == "gaussian"), *order.gaussian)
        spans((r.noise.strength for r in rounds if r.noise.kind == "poisson"), *order.poisson)
        spans((r.quality for r in rounds), *order.quality)
        assert {k.size for k in bells} == set(range(7, 22, 2))
        small = [r.blur.cutoff for r in rounds if r.blur and r.blur.kind == "sinc" and r.blur.size < 13]
        large = [r.blur.cutoff for r in rounds if r.blur and r.blur.kind == "sinc" and r.blur.size >= 13]
        assert math.pi / 3 <= min(small)
        assert math.pi / 5 <= min(large) < math.pi / 3
    spans((r.sinc.cutoff for r in recipes if r.sinc), math.pi / 3, math.pi)


def test_the_ranges_are_the_published_ones():
    """options/train_realesrgan_x4plus.yml of xinntao/Real-ESRGAN, key by key."""
    first, second = PRESETS["real-esrgan"].first, PRESETS["real-esrgan"].second
    assert list(KERNELS.values()) == [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    assert (first.sigma, first.sinc_rate, second.sigma, second.sinc_rate) == ((0.2, 3), 0.1, (0.2, 1.5), 0.1)
    assert first.generalized_beta == second.generalized_beta == (0.5, 4)
    assert first.plateau_beta == second.plateau_beta == (1, 2)
    assert (first.resize_rates, first.resize) == ((0.2, 0.7, 0.1), (0.15, 1.5))
    assert (second.blur_rate, second.resize_rates, second.resize) == (0.8, (0.3, 0.4, 0.3), (0.3, 1.2))
    assert (first.gaussian, second.gaussian) == ((1, 30), (1, 25))
    assert (first.poisson, second.poisson) == ((0.05, 3), (0.05, 2.5))
    for order in (first, second):
        assert (order.gaussian_rate, order.grey_rate, order.quality) == (0.5, 0.4, (30, 95))
    assert REAL_ESRGAN.final_sinc_rate == 0.8


def test_the_steps_come_in_their_order():
    """With noise 0, quality 100 and given kernels, the result is what the steps give one after the other."""
    x = picture(60, 44)
    one, two, last = (
        Kernel("gaussian", 7, (1.1, 1.1)),
        Kernel("plateau", 9, (0.8, 1.2), 0.3, 1.5),
        Kernel("sinc", 7, cutoff=2.0),
    )
    plain = Recipe(Round(one, 0.7, "area", QUIET, 100), Round(two, 1.1, "bicubic", QUIET, 100), "bilinear", last, False)
    y = resize(blur(x, one), (42, 30.8), "area")
    y = resize(blur(y, two), (33, 24.2), "bicubic")
    y = blur(resize(y, (30, 22), "bilinear"), last)
    for before in (False, True):
        recipe = dataclasses.replace(plain, sinc_before_jpeg=before)
        found = follow(recipe, x, 2, generator())
        assert found.shape == (1, 3, 30, 22)
        assert (found - y.clamp(0, 1)).abs().mean() < 1.5 / 255
    assert (follow(plain, x, 2, generator()) - x[..., ::2, ::2]).abs().mean() > 4 / 255


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(9, 21), (31, 40), (17, 23)])
def test_a_resize_is_torchs_from_border_to_border(mode, size):
    x = picture(17, 23)
    expected = torch.nn.functional.interpolate(x, size, mode=mode)
    torch.testing.assert_close(resize(x, (size[0] + 0.9, size[1]), mode), expected)


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise_has_its_standard_deviation(grey):
    x = torch.full((1, 3, 200, 200), 0.5)
    added = add_noise(x, Noise("gaussian", 20.0, grey), generator()) - x
    assert added.std().item() * 255 == pytest.approx(20, rel=0.02)
    assert abs(added.mean().item()) * 255 < 0.3
    assert torch.equal(added[:, 0], added[:, 1]) is grey


@pytest.mark.parametrize("grey", [False, True])
def test_poisson_noise_grows_with_the_light(grey):
    """256 levels: photons = 256 at full brightness, so the variance is strength^2 brightness / 256."""
    x = (torch.arange(256.0) / 255).repeat(600, 1).expand(1, 3, -1, -1)
    added = add_noise(x, Noise("poisson", 0.5, grey), generator()) - x
    for level in (40, 100, 180):  # where nothing is cut off
        band = added[..., level - 8 : level + 8]
        assert band.std().item() == pytest.approx(0.5 * math.sqrt(level / 255 / 256), rel=0.05)
        assert abs(band.mean().item()) < 1e-3
    assert torch.allclose(added[:, 0], added[:, 1]) is grey


def test_noise_stays_within_the_range_and_depends_on_its_generator_alone():
    x = torch.rand(1, 3, 20, 20, generator=generator(1))
    for kind in ("gaussian", "poisson"):
        noise = Noise(kind, 30.0, grey=False)
        y = add_noise(x * 1.4 - 0.2, noise, generator(3))  # a bicubic resize leaves [0, 1]
        assert (y.min(), y.max()) == (0, 1)
        torch.manual_seed(5)
        assert torch.equal(add_noise(x * 1.4 - 0.2, noise, generator(3)), y)
        assert not torch.equal(add_noise(x * 1.4 - 0.2, noise, generator(4)), y)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_degraded_picture_is_worse_than_a_reduced_one_but_neither_brighter_nor_moved(scale):
    """Against the bicubic reduction: far from equal, and without mean shift in level or place, over 80 of them."""
    figures, levels, shifts = [], [], []
    for seed in range(80):
        hr = make_picture(96, 96, seed % 10)
        low = torch.from_numpy(imresize(hr, 1 / scale, mode="benchmark") if scale > 1 else hr).permute(2, 0, 1) / 255
        found = degrade(torch.from_numpy(hr).permute(2, 0, 1)[None].float() / 255, scale, [seed])[0]
        figures.append(-10 * math.log10((found - low).square().mean()))
        levels.append((found - low).mean().item())
        shifts.append(shift(low.mean(0), found.mean(0)))
    assert 15 < np.mean(figures) < 32
    assert np.std(figures) > 1.5  # some are worse than others
    assert abs(np.mean(levels)) < 1.5 / 255
    assert np.abs(np.mean(shifts, 0)).max() < 4 * np.std(shifts) / math.sqrt(80)


def shift(one, other):
    """Returns by how many pixels (down, right) `other` is moved against `one`, by least squares on the gradients."""
    down, right = (one[2:, 1:-1] - one[:-2, 1:-1]) / 2, (one[1:-1, 2:] - one[1:-1, :-2]) / 2
    gradients = torch.stack([down.flatten(), right.flatten()], 1).double()
    difference = (one - other)[1:-1, 1:-1].flatten().double()
    return torch.linalg.lstsq(gradients, difference[:, None]).solution[:, 0].numpy()


def test_the_measure_of_shifts_sees_one():
    x = picture(60, 60)[0].mean(0)
    found = shift(x[10:50, 10:50], (x[9:49, 10:50] * 0.1 + x[10:50, 10:50] * 0.9))
    assert found == pytest.approx([0.1, 0], abs=0.02)


def test_sharpening_overdraws_edges_and_leaves_the_rest():
    """Equal to OpenCV's blur in the same formula; flat and faintly grained regions stay as they are."""
    cv2 = pytest.importorskip("cv2")
    x = picture(80, 90)
    pixels = x[0].permute(1, 2, 0).numpy()
    residual = pixels - cv2.GaussianBlur(pixels, (51, 51), 0)
    region = cv2.GaussianBlur((np.abs(residual) > 10 / 255).astype(np.float32), (51, 51), 0)
    expected = region * np.clip(pixels + 0.5 * residual, 0, 1) + (1 - region) * pixels
    found = sharpen(x)
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=2e-3)
    assert found.std() > 1.05 * x.std()
    faint = 0.5 + 0.01 * torch.rand(1, 3, 60, 60, generator=generator())
    assert torch.equal(sharpen(faint), faint)
    assert sharpen(torch.rand(2, 3, 8, 5, generator=generator())).shape == (2, 3, 8, 5)


@pytest.mark.gpu
def test_a_gpu_draws_the_same_recipes_and_repeats_itself():
    x = torch.cat([picture(128, 128, seed) for seed in range(8)])
    first = degrade(x.cuda(), 4, range(8))
    assert first.device.type == "cuda"
    assert torch.equal(degrade(x.cuda(), 4, range(8)), first)
    cpu = degrade(x, 4, range(8))  # its noise is another
    assert (first.cpu() - cpu).square().mean().sqrt() < 0.15
    assert (first.cpu().mean() - cpu.mean()).abs() < 0.01

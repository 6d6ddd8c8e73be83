from __future__ import annotations

import subprocess
import sys
import textwrap
import weakref

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from densekit.errors import ConfigError, DeviceError
from densekit.tiling import plan_tiles, plan_windows, run_blended, run_exact, tile_size_for

property_test = settings(deadline=None, max_examples=40, derandomize=True)
sides = st.integers(1, 30)


def make_net(depth: int, scale: int, unshuffle: int = 1, positive: bool = False, dtype=torch.float64, seed: int = 0):
    """`depth` convolutions and one behind the shuffle: sees (depth + 1) pixels, or depth cells of the unshuffle and
    a fraction. Weights keep the amplitude or amplify it, so that far pixels count."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.PixelUnshuffle(unshuffle)]
    channels = 2 * unshuffle**2
    for i in range(depth):
        out = 5 if i < depth - 1 else 3 * (scale * unshuffle) ** 2
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.LeakyReLU(0.2)]
        channels = out
    layers.append(nn.PixelShuffle(scale * unshuffle))
    if unshuffle == 1:
        layers.append(nn.Conv2d(3, 3, 3, padding=1))
    net = nn.Sequential(*layers).to(dtype).requires_grad_(False)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        if positive:
            parameter.copy_((torch.rand(parameter.shape, generator=generator) + 0.5) / fan_in)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2 / fan_in**0.5)
    return net


def random_image(height: int, width: int, dtype=torch.float64, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, 2, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(y: Tensor, whole: Tensor) -> float:
    assert y.shape == whole.shape
    return float((y - whole).abs().max() / whole.abs().max())


class LimitedNet:
    """Refuses inputs above a number of pixels, as an allocator would, and counts both outcomes."""

    def __init__(self, net, max_pixels: int, error: BaseException) -> None:
        self.net, self.max_pixels, self.error = net, max_pixels, error
        self.refused = self.served = 0

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-2] * x.shape[-1] > self.max_pixels:
            self.refused += 1
            raise self.error
        self.served += 1
        return self.net(x)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to ..."),
    RuntimeError("std::bad_alloc"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
]
out_of_memory = pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20] or "MemoryError")


# Plans


@property_test
@given(st.integers(1, 25), st.integers(1, 25), st.integers(1, 70), st.integers(0, 30), st.sampled_from([1, 2, 4, 7]))
def test_cores_cover_every_pixel_exactly_once(rows, columns, tile_size, halo, multiple_of):
    height, width = rows * multiple_of, columns * multiple_of
    count = torch.zeros(height, width, dtype=torch.int64)
    for tile in plan_tiles(height, width, tile_size, halo, multiple_of):
        tile.core.of(count).add_(1)
        assert tile.core.size <= max(tile_size, multiple_of)
        assert all(edge % multiple_of == 0 for edge in (*tile.core, *tile.source))
        assert tile.source.top <= max(0, tile.core.top - halo)
        assert tile.source.left <= max(0, tile.core.left - halo)
        assert min(height, tile.core.bottom + halo) <= tile.source.bottom <= height
        assert min(width, tile.core.right + halo) <= tile.source.right <= width
    assert bool((count == 1).all())


@property_test
@given(sides, st.integers(1, 20))
def test_cores_are_as_few_as_possible_and_differ_by_one_pixel_at_most(length, tile_size):
    sizes = [tile.core.bottom - tile.core.top for tile in plan_tiles(length, 1, tile_size, 0)]
    assert len(sizes) == -(-length // tile_size)
    assert max(sizes) - min(sizes) <= 1


@property_test
@given(st.integers(1, 25), st.integers(1, 25), st.integers(1, 70), st.data())
def test_windows_cover_the_image_and_overlap_as_asked(rows, columns, tile_size, data):
    multiple_of = data.draw(st.sampled_from([m for m in (1, 2, 4) if m <= tile_size]))
    tile_size -= tile_size % multiple_of
    overlap = data.draw(st.integers(0, tile_size - 1))
    height, width = rows * multiple_of, columns * multiple_of
    windows = plan_windows(height, width, tile_size, overlap, multiple_of)
    count = torch.zeros(height, width, dtype=torch.int64)
    for window in windows:
        window.core.of(count).add_(1)
        assert window.core == window.source
        assert window.core.bottom - window.core.top == min(tile_size, height)
        assert window.core.right - window.core.left == min(tile_size, width)
        assert all(edge % multiple_of == 0 for edge in window.core)
    assert bool((count >= 1).all())
    lefts = sorted({window.core.left for window in windows})
    for i in range(1, len(lefts)):
        assert lefts[i - 1] + tile_size - lefts[i] >= min(overlap, tile_size - multiple_of)


def test_a_tile_size_or_halo_or_overlap_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"^tile_size=0: expected at least 1 pixel$"):
        plan_tiles(8, 8, 0, 0)
    with pytest.raises(ConfigError, match=r"^halo=-1: expected 0 or more pixels$"):
        plan_tiles(8, 8, 4, -1)
    for overlap in (-1, 32):
        with pytest.raises(
            ConfigError, match=rf"^overlap={overlap}: expected 0 or more pixels, and less than the tile's 32$"
        ):
            plan_windows(64, 64, 32, overlap)


@property_test
@given(st.integers(10**4, 10**8), st.integers(4, 10_000), st.integers(0, 60), st.sampled_from([1, 2, 8, 32]))
def test_the_tile_size_is_the_largest_that_fits_the_budget(budget, bytes_per_pixel, halo, multiple_of):
    size = tile_size_for(budget, bytes_per_pixel, halo, multiple_of)
    assert size >= 64

    side = size + 2 * (-(-halo // multiple_of) * multiple_of)
    assert size % multiple_of == 0
    assert size == 64 or side**2 * bytes_per_pixel <= budget
    assert (side + multiple_of) ** 2 * bytes_per_pixel > budget
    if size <= 512:
        assert max(tile.source.size for tile in plan_tiles(2048, 2048, size, halo, multiple_of)) <= side


def test_the_tile_size_stays_between_its_bounds():
    assert tile_size_for(0, 100.0, 30) == 64
    assert tile_size_for(0, 100.0, 30, minimum=16) == 16
    assert tile_size_for(1e12, 100.0, 30, maximum=512) == 512
    assert tile_size_for(1e12, 100.0, 30, multiple_of=48, maximum=512) == 480


# Exact


@property_test
@given(sides, sides, st.integers(1, 24), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 5))
def test_tiles_give_the_whole_image_in_float64(height, width, tile_size, depth, scale, positive, extra_halo):
    assume(height * width <= 100 * tile_size**2)
    net = make_net(depth, scale, positive=positive)
    x = random_image(height, width)
    tiled = run_exact(net, x, scale=scale, halo=depth + 1 + extra_halo, tile_size=tile_size)
    assert tiled.dtype == torch.float64
    assert relative_error(tiled, net(x)) <= 1e-12


@property_test
@given(sides, sides, st.integers(5, 24), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_tiles_give_the_whole_image_in_float32(height, width, tile_size, depth, scale, positive):
    net = make_net(depth, scale, positive=positive, dtype=torch.float32)
    x = random_image(height, width, torch.float32, batch=2)
    tiled = run_exact(net, x, scale=scale, halo=depth + 1, tile_size=tile_size)
    assert relative_error(tiled, net(x)) <= 1e-6


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [1, 4])
def test_a_halo_one_pixel_too_small_shows(depth, scale):
    net = make_net(depth, scale, positive=True)
    x = random_image(37, 41)
    whole = net(x)
    assert relative_error(run_exact(net, x, scale=scale, halo=depth + 1, tile_size=13), whole) <= 1e-12
    assert relative_error(run_exact(net, x, scale=scale, halo=depth, tile_size=13), whole) > 1e-6


@property_test
@given(sides, sides, st.integers(1, 24), st.sampled_from([2, 4]), st.integers(1, 2), st.integers(1, 3))
def test_tiles_of_an_unshuffling_network_lie_on_its_grid(height, width, tile_size, multiple_of, scale, depth):
    assume(height * width <= 200 * tile_size**2)
    net = make_net(depth, scale, unshuffle=multiple_of)
    x = random_image(height, width)
    padded = F.pad(x, (0, -width % multiple_of, 0, -height % multiple_of), mode="replicate")
    whole = net(padded)[..., : height * scale, : width * scale]
    for size in (tile_size, None):
        halo = depth * multiple_of - 1  # rounded up to the grid
        tiled = run_exact(net, x, scale=scale, halo=halo, tile_size=size, multiple_of=multiple_of)
        assert relative_error(tiled, whole) <= 1e-12


@pytest.mark.parametrize("multiple_of", [2, 4])
def test_a_halo_one_cell_too_small_shows(multiple_of):
    net = make_net(3, 1, unshuffle=multiple_of, positive=True)
    x = random_image(60, 64)
    tiled = run_exact(net, x, scale=1, halo=2 * multiple_of, tile_size=16, multiple_of=multiple_of)
    assert relative_error(tiled, net(x)) > 1e-6


def test_half_precision_outputs_are_gathered_in_float32():
    net = make_net(2, 2, dtype=torch.bfloat16)
    x = random_image(20, 20, torch.bfloat16)
    assert run_exact(net, x, scale=2, halo=3, tile_size=8).dtype == torch.float32


def test_progress_ends_with_every_pixel_done():
    calls: list[tuple[int, int]] = []
    run_exact(
        make_net(1, 1), random_image(20, 30), scale=1, halo=2, tile_size=10, on_tile=lambda *call: calls.append(call)
    )
    assert calls == [(100 * i, 600) for i in range(1, 7)]


def test_no_gradient_is_kept():
    net = make_net(1, 1).requires_grad_(True)
    assert not run_exact(net, random_image(9, 9), scale=1, halo=2, tile_size=4).requires_grad


def test_a_network_that_changes_the_size_is_caught():
    with pytest.raises(AssertionError, match=r"the network gave \(1, 2, 8, 8\) for a 8x8 tile at scale 2"):
        run_exact(lambda x: x, random_image(8, 8), scale=2, halo=0, tile_size=None)


# Blended


@property_test
@given(sides, sides, st.integers(1, 30), st.sampled_from([1, 2, 4]), st.data())
def test_blending_keeps_a_pointwise_network(height, width, tile_size, multiple_of, data):
    tile_size = max(tile_size, multiple_of)
    assume(height * width <= 40 * tile_size**2)
    overlap = data.draw(st.integers(0, max(0, tile_size // multiple_of * multiple_of - 1) * 2 // 3))
    weight = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(1)) * 5
    x = random_image(height, width, torch.float32, batch=2)
    y = run_blended(
        lambda tile: F.conv2d(tile, weight), x, num_outputs=3, tile_size=tile_size, overlap=overlap,
        multiple_of=multiple_of,
    )  # fmt: skip
    assert y.dtype == torch.float32
    assert relative_error(y, F.conv2d(x, weight)) <= 1e-6


def test_a_constant_image_stays_constant_whatever_the_overlap():
    x = torch.full((1, 1, 33, 38), 0.7)
    for tile_size in (16, 25, 64):
        for overlap in (0, 1, 8, 13):
            y = run_blended(lambda tile: tile, x, num_outputs=1, tile_size=tile_size, overlap=overlap)
            torch.testing.assert_close(y, x, rtol=1e-6, atol=0)


def test_windows_fade_into_each_other_but_not_into_the_image_border():
    calls = iter([0.0, 1.0])
    y = run_blended(
        lambda tile: torch.full_like(tile, next(calls)), torch.rand(1, 1, 4, 24), num_outputs=1, tile_size=16, overlap=8
    )[0, 0]
    assert bool((y == y[0]).all())
    row = y[0]
    assert row[:8].tolist() == [0.0] * 8
    assert row[16:].tolist() == [1.0] * 8
    ramp = row[8:16]
    assert bool((ramp.diff() > 0).all())
    assert 0 < ramp[0] < 0.05
    torch.testing.assert_close(ramp + ramp.flip(0), torch.ones(8))  # the two weights sum to 1 on every pixel


@pytest.mark.parametrize(("tile_size", "overlap"), [(None, 8), (16, 4), (25, 0), (32, 8)])
def test_blending_keeps_what_a_pointwise_network_enlarges(tile_size, overlap):
    weight = torch.randn(3 * 9, 2, 1, 1, generator=torch.Generator().manual_seed(1))

    def enlarge(x):
        return F.pixel_shuffle(F.conv2d(x, weight), 3)

    x = random_image(41, 58, torch.float32, batch=2)
    y = run_blended(enlarge, x, num_outputs=3, scale=3, tile_size=tile_size, overlap=overlap, multiple_of=4)
    assert y.shape == (2, 3, 123, 174)
    assert relative_error(y, enlarge(x)) <= 1e-6


def test_blending_without_tiles_is_the_network_on_the_continued_image():
    net = make_net(2, 1, unshuffle=4, dtype=torch.float32)
    x = random_image(21, 30, torch.float32)
    whole = net(F.pad(x, (0, 2, 0, 3), mode="replicate"))[..., :21, :30]
    for tile_size in (None, 32, 64):
        y = run_blended(net, x, num_outputs=3, tile_size=tile_size, overlap=8, multiple_of=4)
        torch.testing.assert_close(y, whole, rtol=0, atol=0)


# Out of memory


@out_of_memory
def test_tiles_that_do_not_fit_are_run_in_pieces_and_none_is_missing(error):
    net = make_net(3, 2)
    x = random_image(200, 170)
    limited = LimitedNet(net, 90 * 90, error)
    calls: list[tuple[int, int]] = []
    tiled = run_exact(
        limited, x, scale=2, halo=4, tile_size=None, on_tile=lambda done, total: calls.append((done, total))
    )
    assert relative_error(tiled, net(x)) <= 1e-12
    assert limited.refused == 2  # 200 and 100 pixels: once a size failed, it is not tried again
    assert len(calls) == limited.served == 16
    assert calls[-1] == (200 * 170, 200 * 170)


@out_of_memory
def test_windows_that_do_not_fit_are_run_in_pieces_and_none_is_missing(error):
    x = random_image(300, 130, torch.float32)
    limited = LimitedNet(lambda tile: tile.square(), 70 * 70, error)
    calls: list[tuple[int, int]] = []
    y = run_blended(
        limited, x, num_outputs=2, tile_size=256, overlap=64, on_tile=lambda done, total: calls.append((done, total))
    )
    assert relative_error(y, x.square()) <= 1e-6
    assert limited.refused == 2  # 256 and 128 pixels
    # Pieces of 64 overlap by 32: 3 x 2 pieces of 128 of the first window, 3 x 3 of each; 7 x 4 of the second window.
    assert limited.served == len(calls) == 3 * 2 * 3 * 3 + 7 * 4
    assert calls[-1][0] == calls[-1][1]


def test_pieces_of_a_whole_image_overlap_too():
    x = random_image(60, 100, torch.float32)
    limited = LimitedNet(lambda tile: tile, 70 * 70, MemoryError())
    y = run_blended(limited, x, num_outputs=2, tile_size=None, overlap=32)
    assert (limited.refused, limited.served) == (1, 3)  # columns 0-64, 32-96 and 36-100
    torch.testing.assert_close(y, x)


def test_pieces_never_get_smaller_than_the_grid():
    limited = LimitedNet(lambda x: x, 1, MemoryError())
    with pytest.raises(DeviceError, match="does not fit cpu memory even at tile 96"):
        run_exact(limited, random_image(200, 100), scale=1, halo=0, tile_size=None, multiple_of=96)


def test_pieces_of_a_tile_stay_on_the_grid():
    net = make_net(2, 1, unshuffle=4)
    x = random_image(203, 170)
    limited = LimitedNet(net, 90 * 90, OUT_OF_MEMORY[0])
    tiled = run_exact(limited, x, scale=1, halo=8, tile_size=150, multiple_of=4)
    whole = net(F.pad(x, (0, 2, 0, 1), mode="replicate"))[..., :203, :170]
    assert relative_error(tiled, whole) <= 1e-12


def test_a_failed_tile_is_freed_before_its_pieces_run():
    held: list[weakref.ref[Tensor]] = []

    def net(x: Tensor) -> Tensor:
        assert all(reference() is None for reference in held)
        y = x.clone()
        held.append(weakref.ref(y))
        if x.shape[-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return y

    run_exact(net, random_image(64, 256), scale=1, halo=0, tile_size=None)
    assert len(held) == 2 + 4


@pytest.mark.parametrize(("tile_size", "smallest"), [(None, 64), (512, 64), (20, 20)])
def test_memory_too_small_for_any_tile_is_one_clear_line(tile_size, smallest):
    limited = LimitedNet(lambda x: x, 100, MemoryError())
    # Width x height, as image viewers say it.
    text = rf"^300x200 does not fit cpu memory even at tile {smallest}; free memory or use --precision bf16$"
    x = random_image(200, 300)
    with pytest.raises(DeviceError, match=text):
        run_exact(limited, x, scale=1, halo=0, tile_size=tile_size)
    with pytest.raises(DeviceError, match=text):
        run_blended(limited, x, num_outputs=2, tile_size=tile_size, overlap=8)


def test_the_memory_that_ran_out_is_named_also_when_the_image_lies_elsewhere():
    limited = LimitedNet(lambda x: x, 1, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(DeviceError, match="does not fit cuda memory"):
        run_exact(limited, random_image(9, 9), scale=1, halo=0, tile_size=None)


def test_a_result_that_does_not_fit_says_its_size():
    def net(x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(1, 3, x.shape[-2] * 2**20, x.shape[-1] * 2**20)

    with pytest.raises(
        DeviceError,
        match=r"^the 8388608x8388608 result takes 844424.9 GB and does not fit cpu memory; "
        "free memory or cut the image into parts$",
    ):
        run_exact(net, random_image(8, 8, torch.float32), scale=2**20, halo=0, tile_size=None)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("no"), KeyboardInterrupt()])
def test_other_errors_pass_through_unchanged(error):
    limited = LimitedNet(lambda x: x, 1, error)
    with pytest.raises(type(error)) as raised:
        run_exact(limited, random_image(9, 9), scale=1, halo=0, tile_size=4)
    assert raised.value is error
    assert limited.refused == 1


@pytest.mark.fault
def test_a_real_memory_limit_gives_the_same_result():
    program = """
        import re, resource, torch
        from pathlib import Path
        from densekit.tiling import run_exact

        torch.set_num_threads(1)
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(64, 3, 3, padding=1)
        )
        x = torch.rand(1, 3, 1200, 1100)
        expected = run_exact(net, x, scale=1, halo=2, tile_size=200)
        pixels = []
        def counted(tile):
            pixels.append(tile.shape[-2] * tile.shape[-1])
            return net(tile)
        used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
        y = run_exact(counted, x, scale=1, halo=2, tile_size=None)
        print(len(pixels), float((y - expected).abs().max() / expected.abs().max()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=280, check=True
    )
    calls, error = done.stdout.split()
    assert int(calls) > 4, "the limit did not bind"
    assert float(error) <= 1e-6

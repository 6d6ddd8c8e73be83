"""Networks over an image block by block: as exact as the whole image at once, in memory that is known beforehand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from densekit.blocks import DenseBlock, optimize
from densekit.memory import LiveBytes
from densekit.models.rdn import RDN
from densekit.models.rrdbnet import RRDBNet
from densekit.models.srdensenet import SRDenseNet
from densekit.tiling import OutOfMemory, Tiles

RDN_SIZES = {"num_features": 6, "num_blocks": 3, "num_layers": 2, "growth_rate": 4}
RRDB_SIZES = {"num_features": 6, "num_blocks": 2, "growth_rate": 4, "residual_scale": 0.7}
SRDENSENET_SIZES = {
    "in_channels": 3, "num_features": 6, "num_blocks": 3, "num_layers": 3, "growth_rate": 4, "bottleneck_features": 8
}  # fmt: skip

NETWORKS = {
    **{f"rdn x{scale}": lambda scale=scale: RDN(scale, **RDN_SIZES) for scale in (2, 3)},
    "rdn x3 espcn": lambda: RDN(3, upsampler="espcn", **RDN_SIZES),
    "rdn x2 espcn_nearest": lambda: RDN(2, upsampler="espcn_nearest", **RDN_SIZES),
    "rdn x4 direct with skip": lambda: RDN(4, upsampler="pixelshuffledirect", bicubic_skip=True, **RDN_SIZES),
    "rdn of one block of one layer": lambda: RDN(2, num_features=6, num_blocks=1, num_layers=1, growth_rate=4),
    **{f"srdensenet x{scale}": lambda scale=scale: SRDenseNet(scale, **SRDENSENET_SIZES) for scale in (2, 3)},
    "srdensenet of one block": lambda: SRDenseNet(2, **{**SRDENSENET_SIZES, "num_blocks": 1, "num_layers": 1}),
    "srdensenet x4 without biases": lambda: SRDenseNet(
        4, deconv_size=2, bottleneck_activation=False, tail_bias=False, **SRDENSENET_SIZES
    ),
    "rrdbnet x4": lambda: RRDBNet(4, **RRDB_SIZES),
    "rrdbnet x4 plus": lambda: RRDBNet(4, plus=True, **RRDB_SIZES),
    "rrdbnet x2 folded": lambda: RRDBNet(2, **RRDB_SIZES),
    "rrdbnet x1 folded": lambda: RRDBNet(1, **RRDB_SIZES),
    "rrdbnet x1 not folded": lambda: RRDBNet(1, unshuffle=False, **RRDB_SIZES),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, dtype: torch.dtype = torch.float64, *, positive: bool = True) -> nn.Module:
    """Returns a network whose weights keep the amplitude, so that pixels at the edge of every context count."""
    net = NETWORKS[name]().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        if positive:
            parameter.copy_((torch.rand(parameter.shape, generator=generator) + 0.5) * 4 / fan_in)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / fan_in**0.5)
    return net.to(dtype)


def random_image(height: int, width: int, dtype: torch.dtype = torch.float64, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(height * width))


def stream(net: nn.Module, x: Tensor, size: int, on_share=None) -> Tensor:
    return net.stream(x, Tiles(size, passes=net.demand.passes, on_share=on_share))


def relative_error(y: Tensor, whole: Tensor) -> float:
    assert y.shape == whole.shape
    return float((y - whole).abs().max() / whole.abs().max())


# Exactness


@networks
@settings(deadline=None, max_examples=4, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(7, 40), st.integers(1, 2))
def test_any_image_in_any_tiles_gives_the_whole_in_float64(name, rows, columns, size, batch):
    net = build(name)
    x = random_image(4 * rows, 4 * columns, batch=batch)
    assert relative_error(stream(net, x, size), net(x)) <= 1e-12


@networks
def test_tiles_give_the_whole_image_in_float32_and_where_terms_cancel(name):
    for positive in (True, False):
        net = build(name, torch.float32, positive=positive)
        x = random_image(40, 52, torch.float32)
        assert relative_error(stream(net, x, 16), net(x)) <= 1e-5


@networks
def test_an_optimised_network_is_streamed_too(name):
    net = build(name, torch.float32)
    x = random_image(40, 52, torch.float32)
    assert relative_error(stream(optimize(net), x, 16), net(x)) <= 1e-5


@networks
def test_half_precision_is_no_worse_in_tiles_than_at_once(name):
    net = build(name, torch.float32, positive=False)
    x = random_image(24, 28, torch.float32)
    exact, half = net(x), build(name, torch.bfloat16, positive=False)
    at_once, streamed = (run.float() for run in (half(x.bfloat16()), stream(half, x.bfloat16(), 12)))
    scale = exact.abs().max()
    errors = [float((y - exact).square().mean().sqrt() / scale) for y in (at_once, streamed)]
    assert errors[1] <= 1.3 * errors[0] + 1e-4


@networks
@pytest.mark.parametrize("radius", ["block_radius", "tail_radius"])
def test_one_pixel_less_of_context_shows(name, radius):
    net = build(name)
    if name == "srdensenet of one block" and radius == "block_radius":
        return  # nothing reads its maps through a 3x3 convolution
    x = random_image(48, 52)
    whole = net(x)
    setattr(net, radius, getattr(net, radius) - 1)
    assert relative_error(stream(net, x, 12), whole) > 1e-9


def test_maps_are_not_changed_and_the_result_is_channels_last():
    x = random_image(9, 8)
    before = x.clone()
    y = Tiles(4).map(lambda x, y: x + 2 * y, 0, x, x)
    torch.testing.assert_close(y, 3 * before, rtol=0, atol=1e-15)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


def test_a_map_can_be_added_onto_some_channels_of_another():
    x = random_image(11, 7)
    sums = torch.ones(1, 5, 11, 7, dtype=torch.float64)
    Tiles(4).map(lambda x: x.repeat(1, 1, 1, 1), 1, x, onto=sums[:, 2:])
    assert torch.equal(sums[:, :2], torch.ones(1, 2, 11, 7, dtype=torch.float64))
    assert torch.equal(sums[:, 2:], 1 + x)


def test_a_function_that_changes_the_size_is_caught():
    with pytest.raises(AssertionError, match=r"the network gave \(1, 3, 4, 4\) for a 4x4 tile at scale 2"):
        Tiles(4).map(lambda x: x, 0, random_image(8, 8), scale=2)


# Progress


@networks
def test_progress_grows_to_the_whole_and_a_map_for_each_pass(name):
    net = build(name)
    shares: list[float] = []
    stream(net, random_image(32, 40), 16, shares.append)
    assert shares == sorted(shares)
    assert len(shares) > net.demand.passes
    assert shares[-1] == pytest.approx(1, abs=1e-12)
    assert shares[0] <= 1 / net.demand.passes


# Memory


def peak_bytes(run, net: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), LiveBytes([*net.parameters(), *net.buffers(), x]) as live:
        run(x)
    return live.peak


@networks
def test_memory_grows_by_the_stated_maps_and_the_result_alone(name):
    net = build(name, torch.float32)
    images = [random_image(side, 48, torch.float32).contiguous(memory_format=torch.channels_last) for side in (48, 96)]
    size = 16 // net.multiple_of
    small, large = (peak_bytes(lambda x: stream(net, x, size), net, x) for x in images)
    folded = 3 if net.multiple_of > 1 else 0  # the input once more, its pixels folded into channels
    for_each_pixel = 4 * (net.demand.channels + folded + 3 * net.scale**2)
    assert (large - small) / (48 * 48) <= for_each_pixel * 1.001
    assert large <= 96 * 48 * for_each_pixel + peak_bytes(net, net, random_image(48, 48, torch.float32))


@pytest.mark.parametrize("name", ["rdn x2", "srdensenet x2", "rrdbnet x4"])
def test_streaming_a_network_of_many_blocks_takes_a_part_of_the_memory(name):
    many = {"rdn x2": RDN(2, num_features=16, num_blocks=8, num_layers=4, growth_rate=8),
            "srdensenet x2": SRDenseNet(2, in_channels=3, num_features=16, num_layers=4, growth_rate=4,
                                        bottleneck_features=16),
            "rrdbnet x4": RRDBNet(4, num_features=16, num_blocks=2, growth_rate=8)}  # fmt: skip
    net = many[name].eval().requires_grad_(False)
    x = random_image(64, 64, torch.float32)
    whole, streamed = peak_bytes(net, net, x), peak_bytes(lambda x: stream(net, x, 8), net, x)
    assert streamed < whole / 2.5


class Limit:
    """A forward hook that refuses maps above a number of pixels, as an allocator would."""

    def __init__(self, max_pixels: int, error: BaseException) -> None:
        self.max_pixels, self.error = max_pixels, error
        self.refused = 0

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].shape[-2] * given[0].shape[-1] > self.max_pixels:
            self.refused += 1
            raise self.error


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
@pytest.mark.parametrize("name", ["rdn x2", "srdensenet x3", "rrdbnet x2 folded"])
def test_tiles_that_do_not_fit_are_run_in_pieces(name, error):
    net = build(name)
    x = random_image(300, 220)
    whole = net(x)
    limit = Limit(90 * 90, error)
    for module in net.modules():
        if isinstance(module, DenseBlock) and module is not getattr(net, "blocks", None):
            module.register_forward_pre_hook(limit)
    shares: list[float] = []
    assert relative_error(stream(net, x, 128, shares.append), whole) <= 1e-12
    assert 1 <= limit.refused <= 2  # a size that failed is tried by no later block
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=1e-12)


def test_memory_too_small_for_the_smallest_tile_is_for_the_caller_to_solve():
    net = build("rdn x2")
    net.sfe1.register_forward_pre_hook(Limit(100, MemoryError()))
    with pytest.raises(OutOfMemory, match=r"^160x200 does not fit cpu memory even at tile 64; free memory"):
        stream(net, random_image(200, 160), 128)


def test_a_failed_tile_adds_nothing():
    x = random_image(200, 100)
    sums = torch.zeros(1, 3, 200, 100, dtype=torch.float64)
    limit = Limit(80 * 80, MemoryError())

    def blur(x: Tensor) -> Tensor:
        limit(nn.Identity(), (x,))
        return F.avg_pool2d(x, 3, 1, 1)

    Tiles(128).map(blur, 1, x, onto=sums)
    assert limit.refused == 1
    torch.testing.assert_close(sums, F.avg_pool2d(x, 3, 1, 1), rtol=0, atol=1e-15)

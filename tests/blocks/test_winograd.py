from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from densekit.blocks import ConvLayer, DenseBlock, ResidualDenseBlock, optimize
from densekit.blocks.inference import winograd
from densekit.blocks.inference.winograd import (
    Kernels,
    WinogradChain,
    gain_of,
    is_chain_faster,
    transformed,
    without_border,
)
from densekit.blocks.layers import leaky_relu
from densekit.memory import LiveBytes, activation_bytes_per_pixel


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture
def always(monkeypatch):
    """Chains on every machine, for every convolution of 3x3 and every size."""
    monkeypatch.setattr(winograd, "has_fast_products", lambda: True)
    monkeypatch.setattr(winograd, "FEW", 0)
    monkeypatch.setattr(winograd, "LEAST_GAIN", 1e-9)
    monkeypatch.setattr(winograd, "LEAST_GAIN_SHARED", 1e-9)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def random_chain(channels, widths, slope=0.0):
    torch.manual_seed(0)
    read = [channels, *widths[:-1]]
    return [
        Kernels([torch.randn(width, c, 3, 3) / (9 * c) ** 0.5 for c in read[: i + 1]], torch.randn(width), slope)
        for i, width in enumerate(widths)
    ]


def plain(x, convs):
    """The same maps by torch's convolutions in float64."""
    maps = x.double()
    for weights, bias, slope in convs:
        y = F.conv2d(maps, torch.cat(weights, dim=1).double(), bias.double(), padding=1)
        maps = torch.cat([maps, y if slope is None else F.leaky_relu(y, slope)], dim=1)
    return maps


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_a_window_and_a_kernel_give_their_correlation():
    torch.manual_seed(0)
    windows, kernels, outputs = winograd.TRANSFORMS
    window, kernel, bias = torch.randn(6, 6).double(), torch.randn(3, 3).double(), torch.randn(1).double()
    products = (windows.double() @ window.flatten()) * (kernels @ kernel.flatten())
    found = outputs.double() @ torch.cat([products, bias])
    expected = F.conv2d(window[None, None], kernel[None, None], bias).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    slope=st.sampled_from([None, 0.0, 0.2]),
    piece=st.sampled_from([1, 5, 30, 144]),
    number=st.integers(1, 4),
)
def test_any_chain_over_any_image_gives_what_convolutions_do(shape, widths, slope, piece, number):
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(winograd, "PIECE", piece)
        torch.set_num_threads(number)
        convs = random_chain(shape[1], widths, slope)
        x = torch.randn(shape)
        maps = WinogradChain(convs)(x)
        torch.set_num_threads(before)
        assert error(without_border(maps, x), plain(x, convs)) <= 2e-6
        outside = torch.ones_like(maps)
        without_border(outside, x).zero_()
        assert not (maps * outside).any(), "the border is what the convolutions pad with"


def test_its_errors_are_at_most_twice_those_of_plain_sums():
    convs = random_chain(64, [32] * 4)
    x = torch.rand(1, 64, 64, 64)
    expected = plain(x, convs)[:, 64:]
    maps = x
    for weights, bias, slope in convs:
        maps = torch.cat([maps, F.leaky_relu(F.conv2d(maps, torch.cat(weights, dim=1), bias, padding=1), slope)], dim=1)
    found = without_border(WinogradChain(convs)(x), x)[:, 64:]
    assert (found - expected).square().mean() <= 2**2 * (maps[:, 64:] - expected).square().mean()
    assert error(found, expected) <= 2e-6


@pytest.mark.parametrize("only_new", [False, True])
@pytest.mark.parametrize("act", [None, leaky_relu])
def test_a_dense_block_gives_the_same(always, threads, only_new, act):
    torch.manual_seed(0)
    block = DenseBlock(6, 3, 5, lambda channels: ConvLayer(channels, 5, *[act] if act else [])).eval()
    ready = optimize(block)
    x = torch.randn(2, 6, 21, 30)
    found, expected = ready(x, only_new=only_new), block.double()(x.double(), only_new=only_new)
    assert "chain" in ready._common
    assert error(found, expected) <= 2e-6


@pytest.mark.parametrize("fusion_size", [1, 3])
def test_a_residual_block_gives_the_same(always, threads, fusion_size):
    torch.manual_seed(0)
    block = ResidualDenseBlock(6, 3, 5, fusion_size=fusion_size, residual_scale=0.2).eval()
    ready = optimize(block)
    for size in [(1, 6, 8, 9), (2, 6, 33, 20)]:
        x = torch.randn(size)
        found = ready(x)
        assert error(found, block.double()(x.double())) <= 2e-6
        assert found.is_contiguous(memory_format=torch.channels_last)
        block.float()
    assert "chain" in ready._common


def test_what_a_chain_keeps_is_not_counted_as_memory_for_pixels(always):
    ready = optimize(DenseBlock(3, 2, 5, lambda channels: ConvLayer(channels, 5)).eval())
    first = activation_bytes_per_pixel(ready)
    assert "chain" in ready._common
    assert activation_bytes_per_pixel(ready) == first


def test_a_single_convolution_gives_the_same(always):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(5, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7), nn.ReLU()).eval()
    x = torch.randn(2, 5, 17, 26)
    ready = optimize(net)
    found = ready(x)
    assert "chain" in ready[0]._common
    assert error(found, net.double()(x.double())) <= 2e-6
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_kernels_are_transformed_once_for_all_sizes(always, monkeypatch):
    calls = []
    monkeypatch.setattr(winograd, "transformed", lambda weight: calls.append(weight) or transformed(weight))
    ready = optimize(nn.Conv2d(5, 7, 3, padding=1).eval())
    for side in range(8, 18):
        ready(torch.randn(1, 5, side, side))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 5, padding=2),
    ],
)
def test_other_convolutions_are_left_as_they_are(always, conv):
    ready = optimize(conv.eval())
    assert ready.gain == 0
    x = torch.randn(1, 8, 20, 20)
    torch.testing.assert_close(ready(x), conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_plain_sums(always, dtype):
    assert not is_chain_faster(torch.rand(1, 8, 64, 64, dtype=dtype), 1e9)
    assert not is_chain_faster(torch.empty(1, 8, 64, 64, device="meta"), 1e9)
    assert is_chain_faster(torch.rand(1, 8, 64, 64), 1e9)


def test_where_matrix_products_are_slow_there_is_no_chain(monkeypatch):
    monkeypatch.setattr(winograd, "has_fast_products", lambda: False)
    assert not is_chain_faster(torch.rand(1, 64, 64, 64), 1e9)


def test_the_gain_counts_products_for_each_number_transformed():
    assert gain_of([64], [64]) == 64 * 64 / 128
    light = gain_of([64, 32, 32, 32], [32, 32, 32, 32])
    assert light == (64 + 96 + 128 + 160) * 32 / (64 + 3 * 32 + 4 * 32)
    assert winograd.LEAST_GAIN < light < winograd.LEAST_GAIN_SHARED, "an RDN of 32 maps gains on one thread only"
    assert gain_of([64] * 8, [64] * 8) > 2 * light


def test_a_taller_image_takes_no_more_but_its_maps(monkeypatch):
    monkeypatch.setattr(winograd, "PIECE", 4)
    chain = WinogradChain(random_chain(8, [8] * 3))
    beyond = []
    for height in (160, 320):
        x = torch.rand(1, 8, height, 8)
        with LiveBytes([x]) as live:
            maps = chain(x)
        beyond.append(live.peak - maps.untyped_storage().nbytes())
    assert beyond[0] == beyond[1]

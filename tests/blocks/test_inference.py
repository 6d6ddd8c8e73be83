from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from densekit import create_encoder, create_model
from densekit.blocks import BasicLayer, BottleneckLayer, ConvLayer, DenseBlock, ResidualDenseBlock, optimize, set_memory
from densekit.blocks.inference import convs, cpu, split
from densekit.blocks.inference.buffered import BufferedBlock, KernelLayer
from densekit.blocks.inference.split import SplitBlock, SplitConv
from densekit.blocks.layers import leaky_relu
from densekit.errors import CheckpointError, ConfigError

NETWORKS = {
    "densenet": {"block_config": (2, 3), "growth_rate": 8, "num_classes": 4},
    "densenet without bottleneck": {"depth": 10, "growth_rate": 4, "bn_size": None, "stem": "cifar", "num_classes": 4},
    "fc_densenet": {"num_classes": 3, "num_pools": 2, "num_layers": 2, "growth_rate": 4},
    "rdn": {"scale": 2, "num_blocks": 2, "num_layers": 3, "growth_rate": 8, "num_features": 8},
    "rrdbnet": {"scale": 4, "num_blocks": 1, "num_features": 8, "growth_rate": 4},
    "srdensenet": {
        "scale": 2,
        "num_blocks": 2,
        "num_layers": 3,
        "growth_rate": 4,
        "num_features": 16,
        "bottleneck_features": 16,
    },
}


def shaken(net):
    """Weights and statistics so random that no norm is the identity and no map is always off."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(-1.5, 1.5)
                module.bias.normal_(0, 0.3)
    return net.eval()


def built(name):
    torch.manual_seed(0)
    return shaken(create_model(name.split()[0], **NETWORKS[name]))


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("size", [(1, 32, 32), (2, 33, 47), (1, 16, 20)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_the_same_to_1e_5(name, size):
    net = built(name)
    ready = net.optimize()
    x = torch.rand(size[0], 1 if name == "srdensenet" else 3, *size[1:])
    assert relative(ready(x), net(x)) <= 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_in_float64_nothing_but_rounding_is_left(name):
    net = built(name).double()
    x = torch.rand(2, 1 if name == "srdensenet" else 3, 24, 28, dtype=torch.float64)
    assert relative(optimize(net)(x), net(x)) <= 1e-12


@pytest.mark.parametrize("memory", ["balanced", "min", "1GiB"])
@pytest.mark.parametrize("name", ["densenet", "fc_densenet", "rdn"])
def test_how_it_was_trained_makes_no_difference(name, memory):
    net = built(name)
    x = torch.rand(1, 3, 32, 32)
    expected = net(x)
    set_memory(net, memory)
    assert relative(optimize(net)(x), expected) <= 1e-5


def test_norms_that_were_synchronized_are_folded_as_well():
    net = built("densenet")
    x = torch.rand(1, 3, 32, 32)
    ready = optimize(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net)).eval())
    kept = [name for name, module in ready.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    assert kept == ["features.norm5"], "which no convolution follows"
    assert relative(ready(x), net(x)) <= 1e-5


@pytest.mark.parametrize("taps", ["act", "raw"])
@pytest.mark.parametrize("output_stride", [8, 32])
def test_every_tap_of_an_encoder_gives_the_same(taps, output_stride):
    net = shaken(
        create_encoder(
            "densenet",
            block_config=(2, 2, 2),
            growth_rate=8,
            out_indices=(0, 1, 2, 3),
            taps=taps,
            output_stride=output_stride,
            mean=(0.4, 0.5, 0.6),
            std=(0.2, 0.3, 0.2),
        )
    )
    x = torch.rand(1, 3, 48, 64)
    found, expected = optimize(net)(x), net(x)
    assert len(found) == len(expected) == 4
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert relative(a, b) <= 1e-5


def test_a_decoder_of_another_library_gives_the_same():
    torch.manual_seed(0)
    net = shaken(create_model("unet", encoder="densenet121", num_classes=2))
    x = torch.rand(1, 3, 32, 64)
    assert relative(optimize(net)(x), net(x)) <= 1e-5


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)),
    layers=st.integers(1, 4),
    growth_rate=st.integers(1, 9),
    kind=st.sampled_from(["bottleneck", "dilated", "basic", "basic dilated", "conv", "leaky"]),
    only_new=st.booleans(),
    positive=st.booleans(),
    together=st.booleans(),
)
def test_any_block_of_any_size_gives_the_same(shape, layers, growth_rate, kind, only_new, positive, together):
    make = {
        "bottleneck": lambda c: BottleneckLayer(c, growth_rate),
        "dilated": lambda c: BottleneckLayer(c, growth_rate, dilation=2),
        "basic": lambda c: BasicLayer(c, growth_rate, bias=True),
        "basic dilated": lambda c: BasicLayer(c, growth_rate, dilation=3),
        "conv": lambda c: ConvLayer(c, growth_rate),
        "leaky": lambda c: ConvLayer(c, growth_rate, leaky_relu),
    }[kind]
    torch.manual_seed(0)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "TOGETHER", split.TOGETHER * together)
        block = shaken(DenseBlock(shape[1], layers, growth_rate, make))
        for norm in block.modules():
            if positive and isinstance(norm, nn.BatchNorm2d):
                norm.weight.abs_()
        ready = optimize(block)
        assert type(ready) is (SplitBlock if kind in ("conv", "leaky") else BufferedBlock)
        x = torch.randn(shape)
        expected = block(x, only_new=only_new)
        torch.testing.assert_close(ready(x, only_new=only_new), expected, rtol=1e-5, atol=1e-5)


def test_the_layer_for_gpus_gives_the_same_where_there_is_none():
    block = shaken(DenseBlock(5, 3, 4, lambda c: BottleneckLayer(c, 4, dilation=2)))
    ready = BufferedBlock(block, [KernelLayer(layer) for layer in block.children()])
    x = torch.randn(2, 5, 9, 7)
    torch.testing.assert_close(ready(x), block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_a_network_gives_the_same(dtype):
    net = built("densenet").cuda()
    x = torch.rand(2, 3, 64, 64, device="cuda")
    assert relative(optimize(net).to(dtype)(x.to(dtype)).float(), net(x)) <= 0.05


def test_a_block_without_layers_gives_what_it_is_given():
    ready = optimize(DenseBlock(3, 0, 4, lambda c: BasicLayer(c, 4)).eval())
    x = torch.randn(1, 3, 5, 6)
    assert torch.equal(ready(x), x)
    assert ready(x, only_new=True).shape == (1, 0, 5, 6)


def test_several_inputs_are_put_together():
    block = shaken(DenseBlock(7, 2, 4, lambda c: BasicLayer(c, 4)))
    x, skip = torch.randn(1, 3, 6, 5), torch.randn(1, 4, 6, 5)
    torch.testing.assert_close(optimize(block)(x, skip), block(x, skip), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, -0.0, 1e-30, -1e-30, 1e-45, -2.0, 3.0])
@pytest.mark.parametrize("bias", [0.0, -1.0, 1.0, 1e-38])
@pytest.mark.parametrize("kind", [BottleneckLayer, BasicLayer])
def test_a_norm_of_any_scale_gives_the_same(weight, bias, kind):
    torch.manual_seed(0)
    block = DenseBlock(4, 1, 3, lambda c: kind(c, 3)).eval()
    block.denselayer1.norm1.weight[1] = weight
    block.denselayer1.norm1.bias[1] = bias
    x = torch.randn(1, 4, 6, 6)
    found = optimize(block)(x)
    assert found.isfinite().all()
    torch.testing.assert_close(found, block(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("kind", [BottleneckLayer, BasicLayer])
def test_in_bfloat16_a_block_loses_no_more_than_the_modules_do(kind, positive):
    block = shaken(DenseBlock(24, 4, 8, lambda c: kind(c, 8)))
    for norm in block.modules():
        if positive and isinstance(norm, nn.BatchNorm2d):
            norm.weight.abs_()
    x = torch.randn(1, 24, 20, 20)
    expected = block(x)
    found = optimize(block).to(torch.bfloat16)(x.bfloat16()).float() - expected
    plain = copy.deepcopy(block).to(torch.bfloat16)(x.bfloat16()).float() - expected
    assert found.square().mean() <= 1.5**2 * plain.square().mean()


def test_the_network_itself_stays_as_it_is():
    net = built("densenet")
    before = copy.deepcopy(net.state_dict())
    x = torch.rand(1, 3, 32, 32)
    expected = net(x)
    optimize(net).to(torch.bfloat16)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(net(x), expected)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_no_random_number_is_drawn():
    net = nn.Sequential(built("srdensenet"), nn.Conv2d(128, 1, 3, padding=1))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    optimize(net)
    assert torch.equal(torch.rand(1), expected)


def test_what_is_ready_does_not_follow_the_weights_and_cannot_be_trained():
    net = built("rdn")
    ready = optimize(net)
    x = torch.rand(1, 3, 8, 8)
    before = ready(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(ready(x), before)
    with pytest.raises(ConfigError, match="an optimised network cannot be trained"):
        ready.train()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_can_be_cast_and_copied_after_it_has_run(name):
    net = built(name)
    ready = optimize(net)
    x = torch.rand(1, 1 if name == "srdensenet" else 3, 32, 32)
    expected = ready(x)
    again = copy.deepcopy(ready)
    assert torch.equal(again(x), expected)
    low = again.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert relative(low.float(), expected) <= 0.1
    assert relative(again.to(torch.float32)(x), expected) <= 0.05  # the weights were rounded


class Packings(TorchDispatchMode):
    """The shapes that convolutions' weights are laid out for."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_reorder_convolution_weight" in str(func):
            self.shapes.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not cpu.onednn_types(), reason="torch without oneDNN")
def test_weights_are_laid_out_once_for_each_of_the_last_four_sizes_of_maps():
    ready = optimize(nn.Conv2d(3, 8, 3, padding=1).eval())
    sizes = [(1, 3, side, 16) for side in (16, 24, 32, 40)]
    with Packings() as packings:
        for size in [*sizes, *sizes]:
            ready(torch.rand(size))
        assert packings.shapes == sizes
        fifth = (1, 3, 48, 16)
        ready(torch.rand(fifth))
        ready(torch.rand(sizes[1]))
        ready(torch.rand(sizes[0]))
    assert packings.shapes == [*sizes, fifth, sizes[0]]


@pytest.mark.parametrize("name", NETWORKS)
def test_its_memory_is_free_as_soon_as_it_is_dropped(name):
    ready = optimize(built(name))
    ready(torch.rand(1, 1 if name == "srdensenet" else 3, 32, 32))
    kept = [weakref.ref(tensor.untyped_storage()) for tensor in ready.buffers()]
    gc.disable()  # it would find cycles
    del ready
    gone = [storage() is None for storage in kept]
    gc.enable()
    assert all(gone)


def has_avx2(monkeypatch):
    """Sets the limits that hold there."""
    monkeypatch.setattr(convs, "has_fast_products", lambda: True)
    monkeypatch.setattr(convs, "HAS_AVX512", False)
    monkeypatch.setattr(convs, "TINY", 64)


class Operators(TorchDispatchMode):
    """The operators that compute convolutions, in the order in which they are called."""

    def __init__(self):
        super().__init__()
        self.names = []
        cpu.has_fast_products()  # the first call measures, with convolutions of its own

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        if name in ("addmm", "_linear_pointwise") or ("conv" in name and "weight" not in name):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def check_operator(conv, size, act, expected):
    """A convolution with norm and activation runs as one call of that operator, and gives the same."""
    net = shaken(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), act()))
    x = torch.randn(size)
    ready = optimize(net)
    with Operators() as operators:
        found = ready(x)
    assert operators.names == [expected]
    torch.testing.assert_close(found, net(x), rtol=1e-5, atol=1e-5)
    assert found.stride(1) == 1, "channels last"


@pytest.mark.skipif(not cpu.onednn_types(), reason="torch without oneDNN")
@pytest.mark.parametrize(
    ("conv", "size", "expected"),
    [
        (nn.Conv2d(5, 48, 1), (1, 5, 64, 64), "addmm"),
        (nn.Conv2d(5, 50, 1, bias=False), (2, 5, 7, 9), "addmm"),
        (nn.Conv2d(5, 48, 1), (1, 5, 64, 65), "_convolution_pointwise"),
        (nn.Conv2d(5, 47, 1), (1, 5, 64, 64), "_convolution_pointwise"),
        (nn.Conv2d(5, 48, 1, stride=2), (1, 5, 16, 16), "_convolution_pointwise"),
        (nn.Conv2d(6, 48, 1, groups=2), (1, 6, 16, 16), "_convolution_pointwise"),
        (nn.Conv2d(5, 48, 1, padding=1), (1, 5, 16, 16), "_convolution_pointwise"),
        (nn.Conv2d(5, 64, 3, padding=1), (1, 5, 8, 8), "conv2d"),
        (nn.Conv2d(5, 13, 3, padding=1, bias=False), (1, 5, 1, 1), "conv2d"),
        (nn.Conv2d(5, 64, 3, padding=1), (2, 5, 4, 4), "_convolution_pointwise"),
        (nn.Conv2d(5, 64, 3, padding=1, stride=2), (1, 5, 8, 8), "_convolution_pointwise"),
        (nn.Conv2d(5, 64, 3, padding=2, dilation=2), (1, 5, 8, 8), "_convolution_pointwise"),
        (nn.Conv2d(5, 64, 3, padding=1), (1, 5, 8, 9), "_convolution_pointwise"),
        (nn.Conv2d(5, 65, 3, padding=1), (1, 5, 8, 8), "_convolution_pointwise"),
    ],
)
@pytest.mark.parametrize("act", [nn.Identity, nn.ReLU])
def test_of_few_pixels_a_convolution_is_a_product_or_torchs_own(monkeypatch, conv, size, expected, act):
    has_avx2(monkeypatch)
    check_operator(conv, size, act, expected)


@pytest.mark.skipif(not cpu.onednn_types(), reason="torch without oneDNN")
@pytest.mark.parametrize(
    ("conv", "size", "has_products", "expected"),
    [
        (nn.Conv2d(64, 64, 1), (1, 64, 16, 16), True, "addmm"),
        (nn.Conv2d(64, 64, 1), (1, 64, 16, 16), False, "_linear_pointwise"),
        (nn.Conv2d(64, 64, 1), (1, 64, 16, 17), True, "_linear_pointwise"),
        (nn.Conv2d(130, 13, 1, bias=False), (2, 130, 25, 31), True, "_linear_pointwise"),
        (nn.Conv2d(64, 64, 1, stride=2), (1, 64, 16, 16), True, "_convolution_pointwise"),
        (nn.Conv2d(5, 64, 3, padding=1), (1, 5, 5, 4), True, "_convolution_pointwise"),
        (nn.Conv2d(5, 64, 3, padding=1), (1, 5, 4, 4), True, "conv2d"),
    ],
)
@pytest.mark.parametrize("act", [nn.Identity, nn.ReLU])
def test_with_avx512_a_1x1_convolution_is_onednns_product_but_where_it_is_light(
    monkeypatch, conv, size, has_products, expected, act
):
    monkeypatch.setattr(convs, "has_fast_products", lambda: has_products)
    monkeypatch.setattr(convs, "HAS_AVX512", True)
    monkeypatch.setattr(convs, "TINY", 16)
    check_operator(conv, size, act, expected)


@pytest.mark.skipif(torch.bfloat16 not in cpu.onednn_types(), reason="torch without oneDNN for bfloat16")
@pytest.mark.parametrize(
    ("dtype", "count", "side", "calls"),
    [
        (torch.float32, 6, 72, 1),  # 1.9 MiB
        (torch.float32, 6, 80, 6),  # 2.3 MiB
        (torch.bfloat16, 6, 72, 1),
        (torch.bfloat16, 6, 144, 1),  # 3.8 MiB
        (torch.bfloat16, 5, 144, 5),
        (torch.bfloat16, 5, 104, 1),  # 1.7 MiB
    ],
)
def test_small_maps_and_in_bfloat16_many_are_put_together(dtype, count, side, calls):
    torch.manual_seed(0)
    conv = nn.Conv2d(16 * count, 16, 3, padding=1)
    part = SplitConv(conv, [16] * count, slope=0.0).to(dtype)
    maps = [torch.randn(1, 16, side, side).to(dtype) for _ in range(count)]
    with Operators() as operators:
        found = part.add_up(maps)
    assert len(operators.names) == calls
    expected = conv(torch.cat(maps, dim=1).float()).relu()
    assert relative(found.float(), expected) <= (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.skipif(not cpu.onednn_types(), reason="torch without oneDNN")
def test_a_product_keeps_one_form_of_its_weights_for_all_sizes(monkeypatch):
    has_avx2(monkeypatch)
    ready = optimize(nn.Conv2d(5, 48, 1).eval())
    forms = []
    for side in range(4, 12):
        ready(torch.randn(1, 5, side, side))
        forms.append(ready._common["transposed"])
    assert all(form is forms[0] for form in forms)


@pytest.mark.skipif(not cpu.onednn_types(), reason="torch without oneDNN")
def test_the_way_is_chosen_anew_for_other_maps(monkeypatch):
    has_avx2(monkeypatch)
    ready = optimize(nn.Conv2d(5, 48, 1).eval())
    small, large = torch.randn(1, 5, 8, 8), torch.randn(1, 5, 64, 65)
    with Operators() as operators:
        for x in (small, large, small, small.double()):
            ready.to(x.dtype)(x)
    assert operators.names == ["addmm", "_convolution_pointwise", "addmm", "conv2d"]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize(("size", "made", "bias"), [(3, 1, True), (5, 1, False), (3, 2, True)])
def test_a_convolution_of_many_maps_to_a_few_gives_the_same(dtype, tolerance, size, made, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(128, made, size, padding=size // 2, bias=bias).to(dtype)
    ready = optimize(conv)
    assert type(ready) is convs.NarrowConv
    for shape in [(2, 128, 9, 14), (1, 128, 1, 3)]:
        x = torch.randn(shape, dtype=dtype)
        assert ready(x).dtype == dtype
        assert relative(ready(x).double(), conv.double()(x.double())) <= tolerance
        conv.to(dtype)


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2, "padding": 2}, {"padding": 0}, {"groups": 2}])
def test_a_convolution_to_a_few_maps_of_another_kind_runs_as_it_is(options):
    conv = nn.Conv2d(128, 2, 3, **{"padding": 1, **options}).eval()
    assert type(optimize(conv)) is convs.PlannedConv
    x = torch.randn(1, 128, 8, 8)
    torch.testing.assert_close(optimize(conv)(x), conv(x), rtol=1e-5, atol=1e-5)


def test_without_onednns_operators_the_result_is_the_same(monkeypatch):
    monkeypatch.setattr(cpu, "onednn_types", tuple)
    for name in NETWORKS:
        net = built(name)
        x = torch.rand(1, 1 if name == "srdensenet" else 3, 32, 32)
        assert relative(optimize(net)(x), net(x)) <= 1e-5


@pytest.mark.parametrize("name", ["densenet", "fc_densenet"])
def test_norms_without_running_statistics_take_the_batchs_as_before(name):
    net = built(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    x = torch.rand(2, 3, 32, 32)
    assert relative(optimize(net)(x), net(x)) <= 1e-4  # the statistics are sums of rounded maps


def test_other_paddings_groups_and_strides_are_kept():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same"),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, dilation=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
    )
    shaken(net)
    x = torch.rand(2, 3, 13, 17)
    torch.testing.assert_close(optimize(net)(x), net(x), rtol=1e-5, atol=1e-6)


def test_a_residual_block_with_another_layer_runs_as_it_is():
    def make_layer(channels):
        layer = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.GELU())
        layer.radius = 1
        return layer

    block = ResidualDenseBlock(6, 2, 4, make_layer=make_layer)
    x = torch.rand(1, 6, 9, 9)
    torch.testing.assert_close(optimize(block.eval())(x), block(x), rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_finite_are_refused_and_not_hidden_by_fused_operators():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    net[1].running_var[2] = torch.inf
    with pytest.raises(
        CheckpointError, match=r"^1\.running_var holds values that are not finite; use another checkpoint$"
    ):
        optimize(net)

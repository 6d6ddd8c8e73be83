from __future__ import annotations

import copy
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from densekit.blocks import MEMORY_POLICIES, BasicLayer, BottleneckLayer, ConvLayer, DenseBlock, set_memory
from densekit.blocks.layers import leaky_relu

POLICIES = sorted(set(MEMORY_POLICIES) - {"speed", "min"})  # "min" is "lean" inside a block
pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS = {
    "bottleneck": lambda c: BottleneckLayer(c, 8),
    "bottleneck with dropout": lambda c: BottleneckLayer(c, 8, drop_rate=0.2),
    "bottleneck, dilated": lambda c: BottleneckLayer(c, 8, dilation=2),
    "basic": lambda c: BasicLayer(c, 8),
    "basic with bias and dropout": lambda c: BasicLayer(c, 8, bias=True, drop_rate=0.2),
    "conv": lambda c: ConvLayer(c, 8),
    "leaky conv": lambda c: ConvLayer(c, 8, leaky_relu),
}


def shaken(net):
    """Random affine parameters, so that no norm is the identity."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def saved_bytes(net, *inputs, **arguments):
    """Bytes that autograd keeps for the backward pass, parameters, buffers and inputs apart."""
    storages = {}
    given = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers(), *inputs)}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = net(*inputs, **arguments)
    del output
    return sum(storages.values())


def step(net, x, seed=3):
    """One training step; returns output, gradient of the input and those of all parameters."""
    torch.manual_seed(seed)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    net.zero_grad()
    y = net(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()
    return [y.detach(), x.grad, *[parameter.grad for parameter in net.parameters()]]


def buffers(net):
    return {key: value for key, value in net.state_dict().items() if "running" in key or "num_batches" in key}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_autograds_to_1e_12_and_statistics_the_same_bits(layer, policy, training, layout):
    torch.manual_seed(0)
    plain = shaken(DenseBlock(12, 5, 8, LAYERS[layer]).double()).train(training)
    engine = copy.deepcopy(plain)
    set_memory(engine, policy)
    for number in range(3):
        x = torch.randn(3, 12, 9, 7, dtype=torch.float64).contiguous(memory_format=layout)
        for expected, found in zip(step(plain, x, number), step(engine, x, number), strict=True):
            assert (expected - found).abs().max() <= 1e-12 * expected.abs().max()
    assert all(torch.equal(value, buffers(engine)[key]) for key, value in buffers(plain).items())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layer", LAYERS)
def test_in_float32_output_and_statistics_are_the_same_bits(layer, policy, layout):
    torch.manual_seed(0)
    plain = shaken(DenseBlock(12, 5, 8, LAYERS[layer])).train()
    engine = copy.deepcopy(plain)
    set_memory(engine, policy)
    for number in range(3):
        x = (torch.randn(3, 12, 9, 7) * 3 + 1).contiguous(memory_format=layout)
        expected, found = step(plain, x, number), step(engine, x, number)
        assert torch.equal(expected[0], found[0])
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5 * float(a.abs().max()))
    assert all(torch.equal(value, buffers(engine)[key]) for key, value in buffers(plain).items())


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.integers(2, 12)),
    layers=st.integers(1, 4),
    growth_rate=st.integers(1, 9),
    layer=st.sampled_from(["bottleneck", "basic", "conv"]),
    policy=st.sampled_from(POLICIES),
)
def test_any_width_growth_and_size_gives_the_same_gradients(shape, layers, growth_rate, layer, policy):
    make = {
        "bottleneck": lambda c: BottleneckLayer(c, growth_rate, drop_rate=0.3),
        "basic": lambda c: BasicLayer(c, growth_rate, bias=True, drop_rate=0.3),
        "conv": lambda c: ConvLayer(c, growth_rate),
    }[layer]
    torch.manual_seed(0)
    plain = shaken(DenseBlock(shape[1], layers, growth_rate, make).double())
    engine = copy.deepcopy(plain)
    set_memory(engine, policy)
    x = torch.randn(shape, dtype=torch.float64)
    for expected, found in zip(step(plain, x), step(engine, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("frozen", ["every norm", "the first norm of a layer", "every weight of a layer"])
def test_what_is_frozen_stays_so_and_the_rest_learns_alike(policy, frozen):
    torch.manual_seed(0)
    plain = shaken(DenseBlock(6, 4, 8, LAYERS["bottleneck"]).double())
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    engine = copy.deepcopy(plain)
    set_memory(engine, policy)
    for net in (plain, engine):
        if frozen == "every norm":
            for module in net.modules():
                module.train(not isinstance(module, nn.BatchNorm2d))
        elif frozen == "the first norm of a layer":
            net.denselayer2.norm1.eval()
        else:
            net.denselayer3.requires_grad_(False)
    x = torch.randn(3, 6, 8, 8, dtype=torch.float64)
    for expected, found in zip(step(plain, x), step(engine, x), strict=True):
        assert (expected is None) == (found is None)
        if expected is not None:
            assert (expected - found).abs().max() <= 1e-12 * expected.abs().max()
    assert all(torch.equal(value, buffers(engine)[key]) for key, value in buffers(plain).items())


@pytest.mark.parametrize("policy", POLICIES)
def test_under_autocast_the_gradients_are_those_of_the_plain_block(policy):
    torch.manual_seed(0)
    plain = shaken(DenseBlock(6, 4, 8, LAYERS["bottleneck"]))
    engine = copy.deepcopy(plain)
    set_memory(engine, policy)
    x = torch.randn(3, 6, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (net(x) for net in (plain, engine))
        for y in (expected, found):
            y.float().square().mean().backward()
    assert expected.dtype == found.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    for (name, a), b in zip(plain.named_parameters(), engine.parameters(), strict=True):
        assert a.grad.dtype == b.grad.dtype == torch.float32
        assert (a.grad - b.grad).norm() <= 0.05 * a.grad.norm() + 1e-6, name


def penalized(net, *inputs, seed=3, **arguments):
    """Gradients of a loss and of the norm of its own gradient; the first by autograd as it goes through the net."""
    torch.manual_seed(seed)
    inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    wanted = [*inputs, *net.parameters()]
    y = net(*[x.sin() for x in inputs], **arguments)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    first = torch.autograd.grad((y * y * weights).sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in first), wanted, allow_unused=True)
    return [*(grad.detach() for grad in first), *second]


class Twice(nn.Module):
    """A block that reads its own new maps."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(self.block(x, only_new=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("only_new", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_second_derivatives_are_autograds_with_a_warning(layer, only_new, training, layout):
    torch.manual_seed(0)
    plain = shaken(DenseBlock(12, 2, 8, LAYERS[layer]).double()).train(training)
    engine = copy.deepcopy(plain)
    set_memory(engine, "lean")
    inputs = [torch.randn(3, c, 5, 4, dtype=torch.float64).contiguous(memory_format=layout) for c in (7, 5)]
    expected = penalized(plain, *inputs, only_new=only_new)
    drawn = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"a second derivative .* in the time and memory of memory='speed'"):
        found = penalized(engine, *inputs, only_new=only_new)
    assert torch.equal(torch.get_rng_state(), drawn)
    largest = max(float(a.abs().max()) for a in expected if a is not None)
    for a, b in zip(expected, found, strict=True):
        assert (a is None or not a.any()) == (b is None or not b.any())
        assert a is None or b is None or (a - b).abs().max() <= 1e-10 * a.abs().max() + 1e-13 * largest
    assert all(torch.equal(value, buffers(engine)[key]) for key, value in buffers(plain).items())


def test_a_block_that_runs_twice_has_the_second_derivative_of_both_times():
    torch.manual_seed(0)
    plain = shaken(DenseBlock(4, 1, 4, lambda c: ConvLayer(c, 4)).double())
    engine = copy.deepcopy(plain)
    set_memory(engine, "lean")
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    twice = [Twice(net) for net in (plain, engine)]
    expected = penalized(twice[0], x)
    with pytest.warns(UserWarning, match="a second derivative"):
        found = penalized(twice[1], x)
    for a, b in zip(expected, found, strict=True):
        assert (a - b).abs().max() <= 1e-10 * a.abs().max()


def test_that_there_could_be_a_second_derivative_keeps_no_input():
    block = DenseBlock(3, 2, 4, lambda c: ConvLayer(c, 4), memory="lean")
    x = torch.randn(1, 3, 5, 5, requires_grad=True).sin()
    held = weakref.ref(x)
    y = block(x)
    del x
    assert held() is None
    assert y.requires_grad


def test_what_changes_the_output_in_place_is_found_out():
    block = DenseBlock(3, 2, 4, lambda c: ConvLayer(c, 4), memory="lean")
    y = block(torch.randn(1, 3, 5, 5, requires_grad=True))
    with torch.no_grad():
        y.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_hook_on_a_layer_is_called_all_the_same():
    block = DenseBlock(3, 2, 4, lambda c: BasicLayer(c, 4), memory="lean")
    called = []
    block.denselayer2.norm1.register_forward_hook(lambda *_: called.append(1))
    block(torch.randn(2, 3, 5, 5)).sum().backward()
    assert called


def test_a_hook_on_the_block_gets_its_gradient():
    block = DenseBlock(3, 2, 4, lambda c: BasicLayer(c, 4), memory="lean")
    shapes = []
    block.register_full_backward_hook(lambda module, given, got: shapes.append((given[0].shape, got[0].shape)))
    block(torch.randn(2, 3, 5, 5, requires_grad=True)).sum().backward()
    assert shapes == [((2, 3, 5, 5), (2, 11, 5, 5))]


def test_a_layer_of_another_kind_runs_as_it_is():
    torch.manual_seed(0)
    block = DenseBlock(3, 2, 4, lambda c: nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.GELU()), memory="lean")
    assert all(grad is not None for grad in step(block, torch.randn(2, 3, 5, 5)))


def test_no_more_than_the_buffer_is_saved():
    x = torch.randn(2, 16, 20, 20, requires_grad=True)
    plane = 2 * 20 * 20 * 4
    expected = {"lean": 16 + 6 * 8, "balanced": 16 + 6 * 8 + 6 * 32}
    for policy, planes in expected.items():
        block = DenseBlock(16, 6, 8, LAYERS["bottleneck"], memory=policy)
        vectors = 4 * (16 + 5 * 8) * 4  # the statistics of the maps that a layer reads
        assert saved_bytes(block, x) == planes * plane + vectors


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("only_new", [False, True])
@pytest.mark.parametrize("layer", ["bottleneck with dropout", "basic with bias and dropout", "leaky conv"])
def test_several_inputs_are_one_input_that_nobody_concatenates(layer, only_new, policy):
    torch.manual_seed(0)
    plain = shaken(DenseBlock(12, 5, 8, LAYERS[layer]).double())
    engine = copy.deepcopy(plain)
    set_memory(engine, policy)
    wide = torch.randn(3, 7, 10, 9, dtype=torch.float64)
    results = []
    for net, count in ((plain, 1), (engine, 2)):
        torch.manual_seed(3)
        inputs = [wide.clone().requires_grad_(), torch.randn(3, 5, 9, 7, dtype=torch.float64).requires_grad_()]
        cropped = [inputs[0][..., :9, 1:8], inputs[1]]
        torch.manual_seed(4)
        y = net(*cropped, only_new=only_new) if count == 2 else net(torch.cat(cropped, dim=1))[:, 12 * only_new :]
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
        results.append([y.detach(), *(x.grad for x in inputs), *(p.grad for p in net.parameters())])
    for expected, found in zip(*results, strict=True):
        assert (expected - found).abs().max() <= 1e-12 * expected.abs().max()
    assert all(torch.equal(value, buffers(engine)[key]) for key, value in buffers(plain).items())


@pytest.mark.parametrize("layer", ["bottleneck", "basic with bias and dropout", "conv"])
def test_maps_that_are_passed_a_part_at_a_time_get_the_same_gradients(layer, monkeypatch):
    torch.manual_seed(0)
    plain = shaken(DenseBlock(150, 3, 8, LAYERS[layer]).double())
    engine = copy.deepcopy(plain)
    set_memory(engine, "balanced")
    monkeypatch.setattr("densekit.blocks.engine.PART", 1)  # 64 channels at a time
    x = torch.randn(2, 150, 5, 4, dtype=torch.float64)
    for expected, found in zip(step(plain, x), step(engine, x), strict=True):
        assert (expected - found).abs().max() <= 1e-12 * expected.abs().max()


def test_of_several_inputs_the_block_keeps_what_the_others_have_already():
    block = DenseBlock(10, 6, 8, LAYERS["basic"], memory="lean")
    up, skip = (torch.randn(2, width, 20, 20, requires_grad=True) for width in (4, 6))
    plane, vectors = 2 * 20 * 20 * 4, 4 * (10 + 5 * 8) * 4
    assert saved_bytes(block, up, skip, only_new=True) == 6 * 8 * plane + vectors
    assert saved_bytes(block, up, skip) == (10 + 6 * 8) * plane + vectors

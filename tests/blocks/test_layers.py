from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densekit.blocks import (
    BasicLayer,
    BottleneckLayer,
    ConvLayer,
    PixelShuffleTail,
    Transition,
    init_densenet_,
    init_he_normal_,
    init_he_uniform_,
    radius,
)
from densekit.blocks.layers import leaky_relu
from densekit.errors import ConfigError


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_bottleneck_layer_normalises_before_each_convolution(dilation):
    layer = BottleneckLayer(6, 4, bn_size=3, dilation=dilation).eval()
    assert layer.conv1.weight.shape == (12, 6, 1, 1)
    assert layer.conv2.weight.shape == (4, 12, 3, 3)
    assert layer.conv1.bias is layer.conv2.bias is None
    nn.init.normal_(layer.norm1.running_mean)
    nn.init.normal_(layer.norm2.bias)
    x = torch.randn(2, 6, 9, 7)
    expected = F.conv2d(
        F.relu(layer.norm2(F.conv2d(F.relu(layer.norm1(x)), layer.conv1.weight))),
        layer.conv2.weight,
        padding=dilation,
        dilation=dilation,
    )
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_a_basic_layer_is_norm_relu_convolution(bias):
    layer = BasicLayer(6, 4, bias=bias).eval()
    nn.init.normal_(layer.norm1.bias)
    x = torch.randn(2, 6, 9, 7)
    assert torch.equal(layer(x), F.conv2d(F.relu(layer.norm1(x)), layer.conv1.weight, layer.conv1.bias, padding=1))
    assert (layer.conv1.bias is not None) == bias


def test_a_conv_layer_takes_its_activation_as_an_argument():
    x = torch.randn(2, 6, 9, 7)
    layer = ConvLayer(6, 4)
    assert torch.equal(layer(x), F.relu(layer.conv(x)))
    layer = ConvLayer(6, 4, leaky_relu)
    assert torch.equal(layer(x), F.leaky_relu(layer.conv(x), 0.2))


def test_layers_leave_their_input_as_it_was():
    x = torch.randn(2, 6, 8, 8)
    before = x.clone()
    for layer in (BottleneckLayer(6, 4), BasicLayer(6, 4), ConvLayer(6, 4), Transition(6, 3, nn.AvgPool2d(2))):
        layer(x)
        assert torch.equal(x, before), type(layer).__name__


def test_a_transition_activates_then_reduces():
    transition = Transition(6, 3, nn.AvgPool2d(2)).eval()
    nn.init.normal_(transition.norm.running_mean)
    x = torch.randn(2, 6, 8, 10)
    activated = F.relu(transition.norm(x))
    assert torch.equal(transition.activate(x), activated)
    assert torch.equal(transition(x), F.avg_pool2d(transition.conv(activated), 2))


@pytest.mark.parametrize(("dropout", "inside"), [("paper", True), ("torchvision", False)])
def test_dropout_inside_the_bottleneck_is_the_papers_alone(dropout, inside):
    layer = BottleneckLayer(6, 4, drop_rate=0.5, dropout=dropout).train()
    assert (layer.drop_rate_inside > 0) == inside
    y = layer(torch.randn(8, 6, 16, 16))
    assert (y == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    layer.eval()
    x = torch.randn(8, 6, 16, 16)
    assert torch.equal(layer(x), layer(x))


def test_an_unknown_dropout_placement_is_named():
    with pytest.raises(ConfigError) as error:
        BottleneckLayer(6, 4, dropout="torch")
    assert str(error.value) == (
        "dropout='torch': not a dropout placement; did you mean 'torchvision'? (known: paper, torchvision)"
    )


@pytest.mark.parametrize(
    "layer",
    [ConvLayer(2, 1), BasicLayer(2, 1), BasicLayer(2, 1, dilation=2), BottleneckLayer(2, 1, dilation=4)],
    ids=["conv", "basic", "basic dilated by 2", "bottleneck dilated by 4"],
)
def test_a_layer_sees_as_far_as_it_says(layer):
    layer.eval()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    x = torch.rand(1, 2, 15, 15, requires_grad=True)
    layer(x)[..., 7, 7].sum().backward()
    rows, columns = x.grad[0].abs().sum(0).nonzero(as_tuple=True)
    assert (rows - 7).abs().max() == (columns - 7).abs().max() == layer.radius


def test_a_radius_adds_up_in_input_pixels_and_rounds_up():
    assert radius([(1, 1), (2, 1)]) == 3
    assert radius([(1, 1), (1, Fraction(1, 2)), (1, 2)]) == 4
    assert radius([(1, Fraction(3)), (1, Fraction(3)), (1, Fraction(3))]) == 1
    assert radius([]) == 0


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_a_tail_enlarges_by_its_scale(scale):
    tail = PixelShuffleTail(6, 3, scale, features=5)
    assert tail(torch.randn(1, 6, 4, 5)).shape == (1, 3, 4 * scale, 5 * scale)


def test_initialisations_have_the_deviation_of_their_source():
    conv = nn.Conv2d(64, 256, 3)
    init_densenet_(conv)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    init_he_normal_(conv, gain=0.1)
    assert conv.weight.std().item() == pytest.approx(0.1 * (2 / (9 * 64)) ** 0.5, rel=0.02)
    init_he_uniform_(conv)
    assert conv.weight.abs().max().item() == pytest.approx((6 / (9 * 64)) ** 0.5, rel=0.01)
    assert not conv.bias.any()

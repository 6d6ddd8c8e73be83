from __future__ import annotations

import pytest
import torch
from torch import nn

from densekit.blocks import RRDB, BasicLayer, BottleneckLayer, ConvLayer, DenseBlock, ResidualDenseBlock
from densekit.blocks import set_memory as give_memory
from densekit.errors import ConfigError

LAYERS = {
    "bottleneck": lambda channels: BottleneckLayer(channels, 4),
    "basic": lambda channels: BasicLayer(channels, 4, bias=True),
    "conv": lambda channels: ConvLayer(channels, 4),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_sees_the_input_and_all_maps_before_it_in_order(layer):
    block = DenseBlock(5, 3, 4, LAYERS[layer])
    x = torch.randn(2, 5, 9, 7)
    stack = x
    for name in ("denselayer1", "denselayer2", "denselayer3"):
        stack = torch.cat([stack, getattr(block, name)(stack)], dim=1)
    y = block(x)
    assert torch.equal(y, stack)
    assert y.shape[1] == block.out_channels == 17
    assert torch.equal(y[:, :5], x)


def test_layers_are_named_as_in_torchvision():
    block = DenseBlock(5, 2, 4, LAYERS["bottleneck"])
    names = [name for name, _ in block.named_parameters() if name.startswith("denselayer2")]
    assert names == [
        "denselayer2.norm1.weight",
        "denselayer2.norm1.bias",
        "denselayer2.conv1.weight",
        "denselayer2.norm2.weight",
        "denselayer2.norm2.bias",
        "denselayer2.conv2.weight",
    ]


def test_a_block_without_layers_passes_its_input():
    block = DenseBlock(5, 0, 4, LAYERS["conv"])
    x = torch.randn(1, 5, 3, 3)
    assert torch.equal(block(x), x)
    assert block.out_channels == 5


def test_every_layer_gets_a_gradient_through_every_path():
    block = DenseBlock(5, 3, 4, LAYERS["bottleneck"])
    x = torch.randn(2, 5, 9, 7, requires_grad=True)
    (block(x) * torch.randn(2, 17, 9, 7)).sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters())


def test_an_unknown_memory_policy_is_named():
    with pytest.raises(ConfigError) as error:
        DenseBlock(5, 2, 4, LAYERS["conv"], memory="speedy")
    assert (
        str(error.value)
        == "memory='speedy': not a memory policy; did you mean 'speed'? (known: speed, balanced, lean, min)"
    )


def test_a_memory_policy_reaches_every_block_inside_a_network():
    net = nn.Sequential(RRDB(4, 2), nn.Conv2d(4, 4, 1), DenseBlock(4, 1, 2, LAYERS["conv"]))
    blocks = [module for module in net.modules() if isinstance(module, DenseBlock)]
    for block in blocks:
        block.memory = "other"
    give_memory(net, "speed")
    assert [block.memory for block in blocks] == ["speed"] * 4
    with pytest.raises(ConfigError, match="memory='fast': neither a memory policy nor a budget"):
        give_memory(net, "fast")


@pytest.mark.parametrize(("fusion_size", "residual_scale"), [(1, 1.0), (3, 0.2)])
def test_a_residual_block_fuses_its_maps_and_adds_its_input(fusion_size, residual_scale):
    block = ResidualDenseBlock(6, 3, 4, fusion_size=fusion_size, residual_scale=residual_scale)
    assert block.radius == 3 + fusion_size // 2
    x = torch.randn(1, 6, 8, 8)
    expected = block.fusion(block.dense(x)) * residual_scale + x
    assert torch.allclose(block(x), expected)


def test_an_rrdb_is_three_scaled_residual_blocks_of_five_convolutions():
    block = RRDB(6, 3)
    x = torch.randn(1, 6, 8, 8)
    y = x
    for inner in (block.rdb1, block.rdb2, block.rdb3):
        y = inner(y)
        assert inner.residual_scale == 0.2
    assert torch.allclose(block(x), x + 0.2 * y)
    assert sum(isinstance(module, nn.Conv2d) for module in block.modules()) == 15
    assert block.radius == 15

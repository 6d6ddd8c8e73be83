from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from densekit.encoders import feature_reuse
from densekit.errors import ConfigError
from densekit.models import create_model
from densekit.pretrained import open_model
from tests.encoders.conftest import TINY


def expected_means(weight, widths):
    """Returns the mean absolute weight of each source, by NumPy."""
    parts = np.split(np.abs(weight.detach().numpy()), np.cumsum(widths)[:-1], axis=1)
    return [part.mean() for part in parts]


def test_the_reuse_of_a_densenet_is_that_of_its_first_convolutions():
    torch.manual_seed(0)
    net = create_model("densenet", **TINY)
    blocks = feature_reuse(net)
    assert [block.name for block in blocks] == [f"features.denseblock{i}" for i in range(1, 5)]
    second, last = blocks[1], blocks[3]
    assert second.sources == ("input", "denselayer1", "denselayer2")
    assert second.targets == ("denselayer1", "denselayer2", "features.transition2.conv")
    assert last.targets == ("denselayer1", "classifier")
    readers = [net.features.denseblock2.denselayer1.conv1, net.features.denseblock2.denselayer2.conv1]
    readers.append(net.features.transition2.conv)
    width = net.features.denseblock2.in_channels
    for column, reader in enumerate(readers):
        means = expected_means(reader.weight, [width, 4, 4][: column + 1])
        assert [row[column] for row in second.weights][: column + 1] == pytest.approx(means)
        assert all(math.isnan(row[column]) for row in second.weights[column + 1 :])
    assert [row[1] for row in last.weights] == pytest.approx(
        expected_means(net.classifier.weight, [last_width(net), 4])
    )


def last_width(net):
    return net.features.denseblock4.in_channels


def test_a_source_that_is_read_twice_as_strongly_shows_twice_the_weight():
    net = create_model("densenet", **TINY)
    layer = net.features.denseblock3.denselayer2
    width = net.features.denseblock3.in_channels
    with torch.no_grad():
        layer.conv1.weight[:, :width] = -0.5
        layer.conv1.weight[:, width:] = 1.0
    weights = feature_reuse(net)[2].weights
    assert (weights[0][1], weights[1][1]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("rdn-tiny-x2", ("blocks.0.dense", "blocks.0.fusion")),
        ("fc-densenet-nuclei", ("down_blocks.0", "transitions_down.0.conv")),
    ],
)
def test_trained_networks_of_both_tasks_have_reuse_to_show(name, first):
    net, _ = open_model(name)
    blocks = feature_reuse(net)
    assert (blocks[0].name, blocks[0].targets[-1]) == first
    assert all(weight > 0 for block in blocks for row in block.weights for weight in row if not math.isnan(weight))


def test_where_only_new_maps_go_on_no_column_is_added():
    net, _ = open_model("fc-densenet-nuclei")
    up = next(block for block in feature_reuse(net) if block.name == "up_blocks.0")
    assert up.targets[-1] == up.sources[-1]


def test_blocks_inside_blocks_and_layers_that_start_depthwise_are_read():
    torch.manual_seed(0)
    small = {"num_features": 8, "num_blocks": 2, "num_layers": 2, "growth_rate": 4, "bottleneck_features": 8}
    names = [block.name for block in feature_reuse(create_model("srdensenet", **small), in_channels=1)]
    assert names == ["blocks", "blocks.denselayer1.dense", "blocks.denselayer2.dense"]
    arguments = {"growth_rate": (8, 8), "block_config": (2, 1), "strides": (1, 2), "num_init_features": 16}
    net = create_model("rdnet_tiny", num_classes=3, **arguments)
    first, second = feature_reuse(net)
    mixing = dict(net.named_modules())[f"{first.name}.{first.targets[1]}.layers.layers.2"]
    assert [row[1] for row in first.weights][:2] == pytest.approx(expected_means(mixing.weight, [16, 8]))
    assert second.targets[-1] == "head.fc"


def test_looking_leaves_no_hook_behind():
    net = create_model("densenet", **TINY).train()
    feature_reuse(net)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_without_dense_blocks_is_refused():
    with pytest.raises(ConfigError, match="no dense block, so there is no feature reuse to show"):
        feature_reuse(nn.Sequential(nn.Conv2d(3, 4, 3)))

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from densekit.encoders import LayerGradient, early_share, gradient_norms, peer_classifier, seeded
from densekit.errors import ConfigError
from densekit.models import create_model
from tests.encoders.conftest import TINY


class Backwards(nn.Module):
    """Runs its layers in another order than it defines them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 2)
        self.first = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu().mean((2, 3)))


def test_norms_are_those_of_autograd_in_the_order_of_running():
    torch.manual_seed(0)
    net, x = Backwards(), torch.rand(4, 3, 9, 9)
    found = gradient_norms(net, x, seed=3)
    with seeded(3):
        y = net.train()(x)
        loss = (y * torch.randn(y.shape)).sum() / y.numel() ** 0.5
    first, last = torch.autograd.grad(loss, [net.first.weight, net.last.weight])
    assert [(layer.name, layer.weights) for layer in found] == [("first", 162), ("last", 12)]
    assert [layer.norm for layer in found] == pytest.approx([float(first.norm()), float(last.norm())], rel=1e-5)


def test_the_network_stays_as_it_was():
    net = create_model("densenet", **TINY).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    norms = gradient_norms(net, torch.rand(2, 3, 64, 64))
    assert len(norms) == 1 + 2 * 6 + 3 + 1
    assert all(layer.norm > 0 for layer in norms)
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_the_same_seed_gives_the_same_norms_with_dropout_too():
    net = create_model("densenet", **TINY, drop_rate=0.3)
    x = torch.rand(2, 3, 64, 64)
    assert gradient_norms(net, x, seed=1) == gradient_norms(net, x, seed=1) != gradient_norms(net, x, seed=2)


def test_every_tap_of_an_encoder_counts(tiny):
    from densekit.encoders import build

    norms = gradient_norms(build(tiny), torch.rand(2, 3, 64, 64))
    assert {"features.conv0", "features.denseblock4.denselayer1.conv2"} <= {layer.name for layer in norms}


def test_the_early_share_compares_quarters_and_leaves_out_what_gets_nothing():
    norms = [
        LayerGradient(str(i), norm, 1) for i, norm in enumerate([6.0, 0.0, 2.0, 3.0, 4.0, 0.0, 1.0, 1.0, 1.0, 2.0])
    ]
    assert early_share(norms) == 4.0 / 1.5
    assert math.isnan(early_share([LayerGradient("a", 0.0, 1)]))


def test_gradients_that_are_not_finite_are_refused():
    net = Backwards()
    with torch.no_grad():
        net.last.weight[0, 0] = math.inf
    with pytest.raises(ConfigError, match="first: its gradient is not finite, so there is nothing to compare"):
        gradient_norms(net, torch.rand(2, 3, 8, 8))


def test_networks_and_pictures_that_do_not_go_together_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"cannot train on a batch of 2x3x2x2: .*; use --size"):
        gradient_norms(Backwards(), torch.rand(2, 3, 2, 2))
    net = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ConfigError, match="no convolutions or linear layers here, so no gradients to show"):
        gradient_norms(net, torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_every_layer_of_a_residual_network_gets_a_gradient_at_the_start(name):
    norms = gradient_norms(peer_classifier(name), torch.rand(4, 3, 64, 64))
    assert len(norms) > 8
    assert all(layer.norm > 0 for layer in norms)

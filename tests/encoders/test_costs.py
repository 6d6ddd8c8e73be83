from __future__ import annotations

import pytest
import torch
from torch import nn

from densekit.blocks import MEMORY_POLICIES, saved_bytes, set_memory
from densekit.encoders.costs import forward_bytes, macs, parameters, training_bytes
from densekit.encoders.opening import Undrawn, build
from densekit.memory import activation_bytes_per_pixel
from densekit.models import create_model

# Parameters, and multiplications at 224x224 or 32x32 in millions, of the networks with their classifiers: counted with
# torchvision's networks for the handbook's table.
TABLE = {
    "densenet121": (7_978_856, 2834),
    "densenet161": (28_681_000, 7728),
    "densenet169": (14_149_480, 3360),
    "densenet201": (20_013_928, 4291),
    "densenet264": (33_337_704, 5752),
    "densenet_bc_cifar": (769_162, 288),
}


QUICK = ("densenet121", "densenet_bc_cifar")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
)
def test_the_costs_of_densenets_are_those_of_the_table(name):
    with torch.device("meta"), Undrawn():
        net = create_model(name)
    side = 32 if name.endswith("cifar") else 224
    assert (parameters(net), round(macs(net, (1, 3, side, side)) / 1e6)) == TABLE[name]


def test_multiplications_are_those_that_can_be_counted_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=4, stride=2, padding=1),
        nn.Flatten(), nn.Linear(8 * 5 * 6, 7),
    )  # fmt: skip
    by_hand = 2 * (10 * 12 * 8 * 3 * 9 + 5 * 6 * 8 * 2 * 9 + 8 * 5 * 6 * 7)
    assert macs(net, (2, 3, 10, 12)) == by_hand


def test_counting_leaves_the_network_as_it_was(tiny, lived):
    net = lived(create_model(tiny)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    macs(net, (1, 3, 64, 64))
    forward_bytes(net, (1, 3, 64, 64))
    training_bytes(net, (2, 3, 64, 64))
    assert net.training
    assert all("forward" not in vars(module) for module in net.modules())
    assert not any(tensor.is_meta for tensor in net.parameters())
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_network_on_paper_gets_its_norms_back(tiny):
    with torch.device("meta"):
        net = build(tiny)
    macs(net, (1, 3, 64, 64))
    assert all("forward" not in vars(module) for module in net.modules())


@pytest.mark.parametrize("policy", MEMORY_POLICIES)
def test_training_memory_is_what_a_real_step_keeps(tiny, policy):
    net = build(tiny).train()
    counted = training_bytes(net, (2, 3, 64, 96))[policy]
    set_memory(net, policy)
    assert counted == saved_bytes(net, torch.rand(2, 3, 64, 96))


def test_a_network_without_policies_has_one_figure():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    assert training_bytes(net, (2, 3, 16, 16)) == {"speed": saved_bytes(net, torch.rand(2, 3, 16, 16))}


def test_prediction_memory_is_what_was_alive_on_the_processor(tiny):
    net = build(tiny).eval()
    assert forward_bytes(net, (2, 3, 64, 96)) == round(activation_bytes_per_pixel(net) * 2 * 64 * 96)

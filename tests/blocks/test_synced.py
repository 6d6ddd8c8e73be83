"""Batch norms that several processes share, in blocks that keep each map once: the step of one with the whole batch.

torch's own synchronized norm runs on GPUs alone; what is run by hand runs here too.
"""

from __future__ import annotations

import copy
from itertools import chain

import pytest
import torch
import torch.distributed as dist
from torch import nn

from densekit.blocks import BasicLayer, BottleneckLayer, DenseBlock, fit_memory, parts, set_memory, synced
from densekit.blocks.norms import batch_norms
from densekit.errors import ConfigError
from densekit.models import create_model
from tests.processes import together

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]
LAYERS = {
    "bottleneck": lambda c: BottleneckLayer(c, 8),
    "basic": lambda c: BasicLayer(c, 8, bias=True),
}
NETWORKS = {
    "densenet": {"num_classes": 5, "growth_rate": 4, "block_config": (2, 3), "num_init_features": 8},
    "fc_densenet": {"num_classes": 3, "num_init_features": 8, "growth_rate": 4, "num_pools": 2, "num_layers": 2},
}


def shaken(net):
    """Random affine parameters, so that no norm is the identity; in float64, without dropout."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    for module in net.modules():
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.0
    return net.double().train()


def synchronized(net, memory):
    net = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    set_memory(net, memory)
    return net


def step(net, x, weights, count=2):
    """Some training steps; returns output, gradients and statistics after the last."""
    for _ in range(count):
        net.zero_grad()
        x = x.detach().requires_grad_()
        y = net(x)
        (y * weights).sum().backward()
    grads = [parameter.grad for parameter in net.parameters()]
    statistics = [buffer for norm in batch_norms(net) for buffer in norm.buffers()]
    return [y.detach(), x.grad], grads, statistics


def check_whole_batch(folder, net, memory, x, sizes):
    """Compares the steps of a process with all of `x` and those of several, each with a part."""
    with torch.no_grad():
        weights = torch.randn_like(copy.deepcopy(net)(x))
    shares = list(zip(x.split(sizes), weights.split(sizes), strict=True))
    found = together(folder, lambda: step(synchronized(net, memory), *shares[dist.get_rank()]), count=len(sizes))
    maps, grads, statistics = step(net, x, weights)
    for expected, *own in zip(maps, *(result[0] for result in found), strict=True):
        close(torch.cat(own), expected)
    for expected, *own in zip(grads, *(result[1] for result in found), strict=True):
        close(sum(own), expected)
    for _, _, own in found:
        for a, b in zip(own, statistics, strict=True):
            close(a, b)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("memory", ["balanced", "lean"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_block_takes_the_step_of_the_whole_batch(tmp_path, layer, memory, layout):
    net = shaken(DenseBlock(12, 4, 8, LAYERS[layer]))
    x = (3 * torch.randn(4, 12, 9, 7, dtype=torch.float64) + 1).contiguous(memory_format=layout)
    check_whole_batch(tmp_path, net, memory, x, [3, 1])


def test_a_process_may_have_one_value_of_each_map(tmp_path):
    net = shaken(DenseBlock(6, 3, 8, LAYERS["bottleneck"]))
    check_whole_batch(tmp_path, net, "lean", torch.randn(4, 6, 1, 1, dtype=torch.float64), [1, 2, 1])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_the_step_of_the_whole_batch(tmp_path, name):
    net = shaken(create_model(name, **NETWORKS[name]))
    side = 32 if name == "densenet" else 8
    check_whole_batch(tmp_path, net, "min", torch.rand(5, 3, side, side, dtype=torch.float64), [2, 3])


def test_others_are_asked_once_for_each_map(tmp_path):
    """torch's norms ask for those of 12 + 20 + 28 + 36 maps and of the four bottlenecks, and as often backwards."""
    net = shaken(DenseBlock(12, 4, 8, LAYERS["bottleneck"]))
    x = torch.randn(2, 12, 5, 5, dtype=torch.float64)

    def channels():
        asked = {"forward": [], "backward": []}
        share, add_up = parts.share_statistics, synced.dist.all_reduce

        def noted_share(stats, eps, group):
            asked["forward"].append(stats.shape[1])
            share(stats, eps, group)

        def noted_sum(sums, group):
            asked["backward"].append(sums.shape[1])
            add_up(sums, group=group)

        parts.share_statistics, synced.dist.all_reduce = noted_share, noted_sum  # in a process that ends here
        step(synchronized(net, "lean"), x, 1.0, count=1)
        return asked

    for asked in together(tmp_path, channels):
        assert asked["forward"] == [12, 32, 8, 32, 8, 32, 8, 32]
        assert asked["backward"] == [32, 8, 32, 8, 32, 8, 32, 12]


@pytest.mark.parametrize("memory", ["balanced", "lean"])
def test_frozen_norms_and_a_process_alone_ask_no_other(tmp_path, memory):
    net = shaken(DenseBlock(12, 4, 8, LAYERS["bottleneck"]))
    x, weights = torch.randn(2, 12, 5, 5, dtype=torch.float64), torch.randn(2, 44, 5, 5, dtype=torch.float64)
    frozen = copy.deepcopy(net)
    for norm in batch_norms(frozen):
        norm.eval()

    def run():
        if dist.get_rank() == 0:  # the other one never comes
            return step(synchronized(frozen, memory), x, weights)
        return []

    expected = step(copy.deepcopy(frozen), x, weights)
    alone = step(synchronized(net, memory), x, weights)
    pairs = zip([together(tmp_path, run)[0], alone], [expected, step(net, x, weights)], strict=True)
    for found, wanted in pairs:
        for a, b in zip(chain(*found), chain(*wanted), strict=True):
            close(a, b)


@pytest.mark.filterwarnings("ignore:a second derivative")
def test_second_derivatives_are_refused(tmp_path):
    net = shaken(DenseBlock(6, 2, 8, LAYERS["basic"]))
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)

    def refused():
        y = synchronized(net, "lean")(x.requires_grad_())
        try:
            torch.autograd.grad(y.square().sum(), x, create_graph=True)
        except ConfigError as error:
            return str(error)

    expected = (
        "a second derivative through batch norms that are synchronized between processes: not supported; freeze the "
        "norms or leave them out of step (train.sync_norm)"
    )
    assert together(tmp_path, refused) == [expected] * 2


def test_a_budget_is_counted_without_the_others(tmp_path):
    net = create_model("densenet", **NETWORKS["densenet"])

    def chosen(net):
        plan = fit_memory(net, (2, 3, 64, 64), "300KiB")
        return [str(plan), [str(module.memory) for module in net.modules() if hasattr(module, "memory")]]

    def run():  # the other process never comes
        return [] if dist.get_rank() else chosen(synchronized(net, "speed"))

    plan, policies = chosen(copy.deepcopy(net))
    assert len(set(policies)) > 1
    assert together(tmp_path, run)[0] == [plan, policies]


def test_norms_of_different_processes_share_no_statistics(monkeypatch):
    block = DenseBlock(6, 2, 8, LAYERS["basic"])
    stages = [layer.stages() for layer in block.children()]
    assert parts.common_eps(stages) == (1e-5, None)
    groups = iter("ab")
    monkeypatch.setattr(parts, "group_of", lambda norm: next(groups))
    with pytest.raises(ValueError, match="of different processes"):
        parts.common_eps(stages)

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from densekit.blocks import (
    MEMORY_POLICIES,
    BasicLayer,
    BottleneckLayer,
    DenseBlock,
    fit_memory,
    saved_bytes,
    set_memory,
)
from densekit.errors import ConfigError
from densekit.models import create_model

SMALL = {"block_config": (3, 3, 3), "growth_rate": 8, "num_classes": 4}
SHAPE = (2, 3, 64, 64)


def policies(net):
    return {name: module.memory for name, module in net.named_modules() if hasattr(module, "memory")}


def kept(net, shape=SHAPE):
    return saved_bytes(net, torch.rand(shape))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return create_model("densenet", **SMALL, drop_rate=0.1).train()


@pytest.mark.parametrize("policy", MEMORY_POLICIES)
@pytest.mark.parametrize("name", ["densenet", "fc_densenet", "rdn", "rrdbnet", "srdensenet"])
def test_what_is_expected_is_what_is_kept(name, policy):
    arguments = {"densenet": SMALL, "rdn": {"num_blocks": 2, "num_layers": 2}, "rrdbnet": {"num_blocks": 1}}
    net = create_model(name, **arguments.get(name, {}))
    shape = (2, 1 if name == "srdensenet" else 3, 36, 36)
    assert fit_memory(net, shape, policy).expected == kept(net, shape)


@pytest.mark.parametrize("share", [1, 0.6, 0.45, 0.3, 0.22])
def test_a_budget_is_kept_with_policies_that_cost_no_more_time_than_needed(net, share):
    everything = kept(net)
    budget = f"{share * everything / 1000:.3f}KB"
    plan = fit_memory(net, SHAPE, budget)
    assert plan.expected == kept(net) <= share * everything
    assert plan.policies == policies(net)
    for name, policy in plan.policies.items():  # nothing could be left at a faster policy
        order = list(MEMORY_POLICIES)
        used = max(map(order.index, plan.policies.values()))
        assert order.index(policy) >= used - 1, name


def test_the_parts_that_save_most_give_in_first(net):
    plan = fit_memory(net, SHAPE, f"{(kept(net) - 1) / 1000:.3f}KB")
    assert [name for name, policy in plan.policies.items() if policy != "speed"] == ["features.denseblock1"]


def test_a_budget_chooses_at_the_first_training_step_and_again_for_larger_batches(net, caplog):
    caplog.set_level(logging.INFO, "densekit")
    budget = kept(net) // 2
    set_memory(net, f"{budget / 1000:.3f}KB")
    with torch.no_grad():
        net(torch.rand(SHAPE))
    net.eval()(torch.rand(SHAPE))
    assert not caplog.messages
    net.train()
    for shape in ((1, 3, 64, 64), SHAPE, (2, 3, 32, 32)):
        net(torch.rand(shape))
    assert [line.rpartition(" ")[2] for line in caplog.messages] == ["1x3x64x64", "2x3x64x64"]
    assert kept(net) <= budget


def test_the_plan_says_which_parts_spend_what(net):
    plan = fit_memory(net, SHAPE, "1.5MiB")
    assert str(plan) == (
        "memory=1.5MiB: features, features.transition1, features.denseblock2, features.transition2, "
        "features.denseblock3 speed; features.denseblock1 balanced: "
        f"{plan.expected / 2**20:.1f} MiB of activations expected at 2x3x64x64"
    )


def test_a_budget_that_nothing_fits_says_what_would_and_what_to_do(net):
    with pytest.raises(ConfigError) as error:
        fit_memory(net, SHAPE, "100KB")
    set_memory(net, "min")
    assert str(error.value) == (
        f"memory='100KB': even 'min' keeps {kept(net) / 2**20:.1f} MiB of activations at 2x3x64x64; raise the budget, "
        "or lower the batch (train.batch_size) or crop (train.crop_size)"
    )


@pytest.mark.parametrize("memory", ["2", "2G", "0MB", "-1GiB", "lots", "2 GiBit", "", 800, None])
def test_what_is_neither_policy_nor_budget_is_refused(memory):
    with pytest.raises(ConfigError) as error:
        set_memory(nn.Conv2d(1, 1, 1), memory)
    assert str(error.value) == (
        f"memory={memory!r}: neither a memory policy nor a budget (known: speed, balanced, lean, min; budgets: 2GiB, "
        "800MB)"
    )


@pytest.mark.parametrize(("memory", "size"), [("2GiB", 2**31), ("800MB", 8 * 10**8), ("1.5 gib", 3 * 2**29)])
def test_budgets_have_the_units_of_people(memory, size, monkeypatch):
    seen = []
    monkeypatch.setattr("densekit.blocks.budget.Ledger.fitting", lambda ledger, size: seen.append(size) or {})
    with pytest.raises(KeyError):
        fit_memory(DenseBlock(3, 1, 4, lambda c: BasicLayer(c, 4)), (1, 3, 8, 8), memory)
    assert seen == [size]


def test_a_budget_is_no_part_of_the_state_and_goes_along_with_copies(net):
    keys = net.state_dict().keys()
    set_memory(net, "1.5MiB")
    assert net.state_dict().keys() == keys
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        copied.train()(torch.rand(SHAPE))
        assert policies(copied) == fit_memory(copy.deepcopy(net), SHAPE, "1.5MiB").policies
        assert set(policies(net).values()) == {"speed"}


def test_a_policy_takes_the_place_of_a_budget(net):
    set_memory(net, "100KB")
    set_memory(net, "lean")
    net(torch.rand(SHAPE))
    assert set(policies(net).values()) == {"lean"}


def test_counting_draws_no_random_numbers_and_moves_no_statistics(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    fit_memory(net, SHAPE, "1.5MiB")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_has_a_hook_is_counted_as_it_is_run():
    block = DenseBlock(8, 4, 8, lambda c: BottleneckLayer(c, 8, drop_rate=0.1), memory="lean")
    called = []
    block.denselayer1.register_forward_hook(lambda *_: called.append(1))
    plan = fit_memory(block, (2, 8, 16, 16), "lean")
    assert not called
    assert plan.expected == kept(block, (2, 8, 16, 16))


def test_under_autocast_its_types_are_counted(net):
    with torch.autocast("cpu", torch.bfloat16):
        expected = fit_memory(net, SHAPE, "balanced").expected
        assert kept(net) == pytest.approx(expected, rel=0.02)
    assert expected < 0.7 * fit_memory(net, SHAPE, "balanced").expected


def test_a_process_that_counted_under_autocast_can_still_be_forked():
    script = """
import os
import torch
from densekit import create_model
from densekit.blocks import fit_memory
torch.set_num_threads(1)  # a pool of OpenMP cannot be forked either
net = create_model("fc_densenet", num_classes=2, num_pools=1, num_layers=1, growth_rate=4)
with torch.autocast("cpu", torch.bfloat16):
    fit_memory(net, (1, 3, 16, 16), "1GiB")
net(torch.rand(1, 3, 16, 16)).sum().backward()
child = os.fork()
if child == 0:
    net(torch.rand(1, 3, 16, 16)).sum().backward()
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

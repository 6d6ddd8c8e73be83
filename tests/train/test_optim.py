from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import product

import pytest
import torch
from torch import nn

from densekit.config import OptimConfig
from densekit.errors import ConfigError
from densekit.train.optim import clip_gradients, create_average, create_optimizer, learning_rate, set_rate


def rates(total_steps, **config):
    return [learning_rate(OptimConfig(**config), step, total_steps) for step in range(total_steps)]


def test_warm_up_is_linear_and_ends_at_the_highest_rate():
    assert rates(8, schedule="constant", warmup_steps=3, learning_rate=0.4) == pytest.approx(
        [0.1, 0.2, 0.3] + 5 * [0.4]
    )


def test_the_cosine_falls_from_the_highest_rate_towards_the_lowest():
    found = rates(100, schedule="cosine", learning_rate=1.0, min_learning_rate=0.2)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.6)
    assert found == sorted(found, reverse=True)
    assert 0.2 < found[-1] < 0.201


def test_a_cosine_after_warm_up_begins_where_warm_up_ends():
    found = rates(10, schedule="cosine", warmup_steps=4, learning_rate=1.0)
    assert found[4] == 1.0
    assert found[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.93301], abs=1e-5)


@pytest.mark.parametrize(("total", "warmup"), [(100, 0), (40, 10)])
def test_one_cycle_is_that_of_torch(total, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.5, total_steps=total, pct_start=warmup / total or 0.3, final_div_factor=1e9
    )
    expected = []
    for _ in range(total):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step() if len(expected) < total else None
    assert rates(total, schedule="onecycle", warmup_steps=warmup, learning_rate=0.5) == pytest.approx(
        expected, abs=1e-8
    )


@pytest.mark.parametrize(("name", "rate"), [*product(["adam", "adamw", "sgd", "rmsprop"], [0.02]), ("muon", 0.1)])
def test_each_optimizer_takes_the_rate_and_decay_and_lowers_a_loss(name, rate):
    torch.manual_seed(0)
    net = nn.Linear(8, 1)
    optimizer = create_optimizer(net, OptimConfig(name=name, learning_rate=rate, weight_decay=0.01))
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(rate, 0.01)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    x, losses = torch.randn(32, 8), []
    for _ in range(20):
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("adam", {}, {"betas": (0.9, 0.999), "eps": 1e-8}),
        ("adamw", {"betas": [0.8, 0.95], "eps": 1e-6}, {"betas": (0.8, 0.95), "eps": 1e-6}),
        ("rmsprop", {}, {"alpha": 0.99, "eps": 1e-8}),
        ("rmsprop", {"betas": [0.9], "eps": 1e-3}, {"alpha": 0.9, "eps": 1e-3}),
    ],
)
def test_decays_and_epsilon_reach_the_optimizer(name, given, expected):
    optimizer = create_optimizer(nn.Linear(2, 1), OptimConfig(name=name, **given))
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


def test_the_average_follows_weights_and_buffers_by_the_formula():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = create_average(net, 0.3)
    expected = None
    for n in range(6):
        net(torch.randn(2, 1, 4, 4))  # moves the statistics of the norm
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update_parameters(net)
        now = copy.deepcopy(net.state_dict())
        decay = min(0.3, (1 + n) / (10 + n))
        expected = now if expected is None else {k: decay * expected[k] + (1 - decay) * now[k] for k in now}
        expected["1.num_batches_tracked"] = now["1.num_batches_tracked"]
    found = average.module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    assert found["1.num_batches_tracked"] == 6


def test_without_decay_the_average_is_the_network():
    net = nn.Linear(3, 3)
    average = create_average(net, 0.0)
    for _ in range(3):
        nn.init.normal_(net.weight)
        average.update_parameters(net)
    assert torch.equal(average.module.weight, net.weight)


def test_step_reduces_the_rate_every_so_many_steps_and_not_below_the_lowest():
    found = rates(10, schedule="step", step_every=3, step_factor=0.1, learning_rate=1.0, min_learning_rate=0.02)
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.02, 0.02, 0.02, 0.02])


def small_net():
    return nn.Sequential(OrderedDict(stem=nn.Linear(2, 3), head=nn.Linear(3, 1)))


def test_patterns_give_parameters_rates_of_their_own_and_the_first_that_fits_counts():
    net = small_net()
    config = OptimConfig(name="sgd", learning_rate=1.0, rates={"stem.bias": 0, "stem.*": 0.1})
    optimizer = create_optimizer(net, config)
    set_rate(optimizer, 0.5)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(net.stem.weight): 0.05, id(net.head.weight): 0.5, id(net.head.bias): 0.5}
    assert not net.stem.bias.requires_grad


@pytest.mark.parametrize("name", ["adam", "adamw", "muon", "sgd", "rmsprop"])
def test_frozen_parameters_stay_with_every_optimizer(name):
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    optimizer = create_optimizer(net, OptimConfig(name=name, weight_decay=0.1, rates={"stem.*": 0}))
    net(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    assert [torch.equal(value, before[key]) for key, value in net.state_dict().items()] == [True, True, False, False]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ({"stm.*": 0.1}, r"^optim.rates: 'stm\.\*' fits no parameter; their names go from stem\.weight to head\.bias$"),
        ({"*": 0}, "^optim.rates: freezes every parameter; leave some to be trained$"),
    ],
)
def test_patterns_that_fit_nothing_or_freeze_all_are_refused(pattern, message):
    with pytest.raises(ConfigError, match=message):
        create_optimizer(small_net(), OptimConfig(rates=pattern))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_gradient_is_clipped_as_if_the_loss_had_not_been_scaled(scale):
    net, reference = small_net(), small_net()
    reference.load_state_dict(net.state_dict())
    optimizer = create_optimizer(net, OptimConfig())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
    x = torch.randn(4, 2)
    scaler.scale(net(x).square().sum()).backward()
    reference(x).square().sum().backward()
    norm = clip_gradients(net, optimizer, scaler, 0.1)
    expected = nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)

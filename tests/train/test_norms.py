from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from densekit.tasks import create_task
from densekit.train import train
from densekit.train.norms import adopt_statistics, freeze_norms
from densekit.train.state import load_state
from tests.training_data import seg_config, write_masked


@pytest.fixture
def config_of(tmp_path):
    folder = write_masked(tmp_path / "data")
    return lambda **options: seg_config(folder, drop_rate=0.0, **options)


def statistics(state):
    return {key: value for key, value in state.items() if "running" in key}


def test_a_frozen_norm_does_in_training_what_it_does_in_prediction():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    freeze_norms(net)
    x = torch.randn(2, 1, 6, 6)
    y = net(x)
    assert net[1].running_mean.abs().max() == 0
    torch.testing.assert_close(y, copy.deepcopy(net).eval()(x))
    y.square().sum().backward()
    assert net[1].weight.grad.abs().min() > 0


def test_statistics_are_taken_over_and_nothing_else():
    torch.manual_seed(0)
    net, average = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(2))
    average(torch.randn(4, 1, 6, 6) + 3)
    before = copy.deepcopy(net.state_dict())
    adopt_statistics(net, average)
    assert torch.equal(net[1].running_mean, average[1].running_mean)
    assert torch.equal(net[1].num_batches_tracked, average[1].num_batches_tracked)
    for key in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert torch.equal(net.state_dict()[key], before[key])


def test_from_its_step_on_statistics_stay(tmp_path, config_of):
    train_until = {steps: config_of(total_steps=12, freeze_norm_step=6, checkpoint_every=steps) for steps in (6, 12)}
    states = {}
    for steps, config in train_until.items():
        train(create_task(config), config, tmp_path / f"run{steps}")
        states[steps] = load_state(tmp_path / f"run{steps}" / "checkpoints" / "state-00000012.dk")
    early = load_state(tmp_path / "run6" / "checkpoints" / "state-00000006.dk")
    averaged = {key.removeprefix("module."): value for key, value in statistics(early["average"]).items()}
    late = statistics(states[12]["net"])
    assert averaged.keys() == late.keys()
    assert all(torch.equal(value, late[key]) for key, value in averaged.items())
    assert any(not torch.equal(value, late[key]) for key, value in statistics(early["net"]).items())


@pytest.mark.parametrize("stop", [4, 6, 8])
def test_a_resume_before_at_or_after_that_step_ends_with_the_same_bytes(tmp_path, config_of, stop):
    class Ended(Exception):
        pass

    def ended(net, batch, task, count):
        count.append(0)
        if len(count) > stop:
            raise Ended
        return type(task).loss(task, net, batch)

    whole = config_of(total_steps=12, freeze_norm_step=6, checkpoint_every=2)
    train(create_task(whole), whole, tmp_path / "whole")
    task, count = create_task(whole), []
    task.loss = lambda net, batch: ended(net, batch, task, count)
    with pytest.raises(Ended):
        train(task, whole, tmp_path / "parts")
    train(create_task(whole), whole, tmp_path / "parts", resume=True)
    name = "checkpoints/state-00000012.dk"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

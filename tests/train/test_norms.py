from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from densekit.blocks.norms import batch_norms
from densekit.checkpoint import load_model
from densekit.config import Config
from densekit.errors import ConfigError
from densekit.evaluate.statistics import with_batch_statistics
from densekit.tasks import create_task
from densekit.train import train
from densekit.train.norms import adopt_statistics, check_norms, freeze_norms, kept_network
from densekit.train.state import load_state
from tests.training_data import seg_config, sr_config, write_masked, write_pictures


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


@pytest.mark.parametrize("stop", [pytest.param(4, marks=pytest.mark.slow), 6, pytest.param(8, marks=pytest.mark.slow)])
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


def with_mode(config, mode, **options):
    return Config.model_validate({**config.model_dump(), "eval": {"bn_mode": mode, **options}})


def test_recalibrated_statistics_are_the_mean_over_the_first_batches_of_training(config_of):
    config = with_mode(config_of(), "recalibrated", bn_batches=3)
    task = create_task(config)
    net = task.build_model()
    kept = kept_network(net.train(), task, config)
    seen, batches = [], task.train_batches(0)
    first = net.eval()
    norm = batch_norms(first)[0]
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for _ in range(3):
            first(next(batches)[0].float() / 255)
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(dim=0)
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x in seen]).mean(dim=0)
    torch.testing.assert_close(batch_norms(kept)[0].running_mean, means)
    torch.testing.assert_close(batch_norms(kept)[0].running_var, variances)
    assert norm.running_mean.abs().max() == 0
    assert all(norm.momentum == 0.1 for norm in batch_norms(kept))


@pytest.mark.parametrize("mode", ["running", "recalibrated", "batch"])
def test_the_checkpoint_says_which_statistics_its_figures_are_of(tmp_path, config_of, mode):
    config = with_mode(config_of(), mode, bn_batches=2)
    task = create_task(config)
    figures = train(task, config, tmp_path / "run")
    net, card = load_model(tmp_path / "run" / "last.safetensors")
    assert card.bn_mode == mode
    scored = with_batch_statistics(net) if mode == "batch" else net
    assert task.evaluate(scored.eval()) == pytest.approx(figures)


@pytest.mark.slow
def test_modes_change_the_figures_and_not_the_training(tmp_path, config_of):
    states, figures = {}, {}
    for mode in ("running", "recalibrated", "batch"):
        config = with_mode(config_of(), mode, bn_batches=2)
        figures[mode] = train(create_task(config), config, tmp_path / mode)["miou"]
        states[mode] = load_state(tmp_path / mode / "checkpoints" / "state-00000012.dk")["average"]
    for mode in ("recalibrated", "batch"):
        assert figures[mode] != figures["running"]
        assert all(torch.equal(value, states["running"][key]) for key, value in states[mode].items())


def test_a_network_without_batch_norms_has_no_other_mode(tmp_path):
    config = with_mode(sr_config(write_pictures(tmp_path / "data")), "recalibrated")
    with pytest.raises(ConfigError, match=r"eval.bn_mode=recalibrated: rdn has no batch norm; remove the key"):
        train(create_task(config), config, tmp_path / "run")


def test_a_norm_that_gets_one_value_of_a_picture_cannot_use_the_pictures_statistics(config_of):
    net = nn.BatchNorm2d(3)
    net.pooled_norm = "head.norm"
    with pytest.raises(ConfigError, match=r"eval.bn_mode=batch: a batch norm of fc_densenet gets one value"):
        check_norms(net, with_mode(config_of(), "batch"))
    check_norms(net, with_mode(config_of(), "recalibrated"))

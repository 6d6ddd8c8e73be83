from __future__ import annotations

import json
import math

import pytest
import torch

from densekit.datasets.draws import Draws
from densekit.errors import DataError
from densekit.tasks import create_task
from densekit.train import train
from densekit.train.state import load_state
from tests.training_data import seg_config, sr_config, write_masked, write_pictures


@pytest.fixture
def config_of(tmp_path):
    folders = {"sr": write_pictures(tmp_path / "sr"), "seg": write_masked(tmp_path / "seg")}
    return lambda task, **options: {"sr": sr_config, "seg": seg_config}[task](folders[task], **options)


class Poisoned:
    """A task whose loss, or its gradient, is not finite in some forward passes."""

    def __init__(self, task, passes, *, gradient=False):
        self.task, self.passes, self.gradient, self.count = task, passes, gradient, 0

    def __getattr__(self, name):
        return getattr(self.task, name)

    def loss(self, net, batch):
        loss = self.task.loss(net, batch)
        self.count += 1
        if self.count - 1 not in self.passes:
            return loss
        if self.gradient:
            loss.register_hook(lambda gradient: gradient * math.inf)
            return loss
        return loss * math.nan


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("gradient", [False, True])
def test_a_step_without_a_finite_gradient_is_skipped(tmp_path, config_of, gradient, capsys):
    config = config_of("sr", total_steps=6, eval_every=6)
    train(Poisoned(create_task(config), {2, 3}, gradient=gradient), config, tmp_path / "run")
    skipped = [line["step"] for line in records(tmp_path / "run") if "skipped" in line]
    assert skipped == [3, 4]
    assert "2 in a row, 10 allowed" in capsys.readouterr().err
    state = load_state(tmp_path / "run" / "checkpoints" / "state-00000006.dk")
    assert state["optimizer"]["state"][0]["step"] == 4  # of 6
    assert state["skipped"] == 0


def test_skipped_steps_change_nothing_but_the_batches_that_are_seen(tmp_path, config_of):
    config = config_of("sr", total_steps=3, eval_every=3, checkpoint_every=3)
    train(Poisoned(create_task(config), {0, 1, 2}), config, tmp_path / "run")
    state = load_state(tmp_path / "run" / "checkpoints" / "state-00000003.dk")
    fresh = create_task(config).build_model().state_dict()
    assert all(torch.equal(value, state["net"][key]) for key, value in fresh.items())


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_too_many_skipped_steps_end_the_run_and_name_the_files(tmp_path, config_of, task):
    config = config_of(task, max_skipped=1)
    drawn = create_task(config)
    poisoned = Poisoned(drawn, {4, 5})
    message = r"^step 5, draws 10 to 11: the loss is nan; of .*\.png, .*\.png; the last whole state stays in .*lower"
    with pytest.raises(DataError, match=message) as error:
        train(poisoned, config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["state-00000004.dk"]
    found = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert (found["step"], found["draws"]) == (5, [10, 11])
    order = list(zip(range(12), Draws(len(drawn.data), config.train.seed), strict=False))
    expected = [str(drawn.data.origins[index]) for _, (draw, index) in order if draw in (10, 11)]
    assert found["files"] == expected
    assert all(path in str(error.value) for path in expected)


def test_skipped_steps_are_counted_across_a_resume(tmp_path, config_of):
    config = config_of("sr", max_skipped=2, total_steps=8, checkpoint_every=1)
    poisoned = Poisoned(create_task(config), {2, 3})
    poisoned.evaluate = lambda net: {}

    class Ended(Exception):
        pass

    def end(*_):
        raise Ended

    original, poisoned_loss = poisoned.task.sources, poisoned.loss
    poisoned.loss = lambda net, batch: end() if poisoned.count == 4 else poisoned_loss(net, batch)
    with pytest.raises(Ended):
        train(poisoned, config, tmp_path / "run")
    assert load_state(tmp_path / "run" / "checkpoints" / "state-00000004.dk")["skipped"] == 2
    with pytest.raises(DataError, match="step 4, draws 8 to 9"):
        train(Poisoned(create_task(config), {0}), config, tmp_path / "run", resume=True)
    assert original


def test_an_overflow_of_scaled_losses_lowers_the_scale_and_is_no_fault(tmp_path, config_of):
    config = config_of("sr", precision="fp16", total_steps=4, eval_every=4, checkpoint_every=4, max_skipped=0)
    train(Poisoned(create_task(config), {1}, gradient=True), config, tmp_path / "run")
    state = load_state(tmp_path / "run" / "checkpoints" / "state-00000004.dk")
    assert state["scaler"]["scale"] == 2.0**15
    assert {t.dtype for t in state["net"].values()} == {torch.float32}
    assert not [line for line in records(tmp_path / "run") if "skipped" in line]

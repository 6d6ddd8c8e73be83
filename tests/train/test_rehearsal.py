from __future__ import annotations

import math

import pytest

from densekit.errors import DataError
from densekit.tasks import create_task
from densekit.train import rehearse
from densekit.train.rehearsal import duration
from tests.training_data import seg_config, sr_config, write_masked, write_pictures


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_a_rehearsal_says_what_a_run_is_made_of_and_writes_nothing(tmp_path, monkeypatch, task):
    folder = write_pictures(tmp_path / "data") if task == "sr" else write_masked(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    config = sr_config(folder, total_steps=100) if task == "sr" else seg_config(folder, total_steps=100)
    lines = list(rehearse(create_task(config), config))
    assert lines[0].startswith(f"{config.model.name}: ")
    if task == "sr":
        assert lines[1] == "data: 3 pictures as 3 pairs to train on, 3 to evaluate on"
    else:
        assert lines[1].startswith("data: 3 images with masks to train on, 3 to evaluate on; shares of the classes: ")
    assert lines[2].startswith("2 steps: loss ")
    assert lines[3].startswith("peak memory ")
    assert lines[4].startswith("100 steps: about 1 min")
    assert sorted(tmp_path.rglob("*")) == before


def test_frozen_parameters_are_told_apart(tmp_path):
    config = sr_config(write_pictures(tmp_path / "data"))
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"rates": {"sfe1.*": 0.0}})})
    assert ", and 224 frozen" in next(rehearse(create_task(config), config))


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    config = sr_config(write_pictures(tmp_path / "data"))
    task = create_task(config)
    task.loss = lambda net, batch: type(task).loss(task, net, batch) * math.nan
    with pytest.raises(DataError, match="the loss of the first steps is nan and nan"):
        list(rehearse(task, config))


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "1 min"), (3599, "1 h 0 min"), (3500, "59 min"), (9000, "2 h 30 min")]
)
def test_durations_are_rough(seconds, text):
    assert duration(seconds) == text

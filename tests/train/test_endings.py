"""A run may end before its last step: by time, or since it gets no better."""

from __future__ import annotations

import json

import pytest

from densekit.cards import read_card
from densekit.tasks import create_task
from densekit.train import train
from densekit.train.state import load_state
from tests.training_data import sr_config, write_pictures


@pytest.fixture
def config_of(tmp_path):
    folder = write_pictures(tmp_path / "pictures")
    return lambda **options: sr_config(folder, **options)


class Scored:
    """A task whose figures are given."""

    def __init__(self, task, figures):
        self.task, self.figures = task, iter(figures)

    def __getattr__(self, name):
        return getattr(self.task, name)

    def evaluate(self, net):
        return {"psnr": next(self.figures)}


def test_training_ends_after_so_many_evaluations_without_a_better_figure(tmp_path, config_of, capsys):
    config = config_of(total_steps=20, eval_every=2, checkpoint_every=5, patience=2)
    figures = train(Scored(create_task(config), [1.0, 3.0, 2.0, 3.0, 9.0]), config, tmp_path / "run")
    assert figures == {"psnr": 3.0}
    assert "step 8: no better psnr in 2 evaluations; training ends" in capsys.readouterr().err
    assert load_state(tmp_path / "run" / "checkpoints" / "state-00000008.dk")["stale"] == 2
    assert read_card(tmp_path / "run" / "best.safetensors").step == 4
    assert read_card(tmp_path / "run" / "last.safetensors").step == 8
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    again = train(Scored(create_task(config), [9.0]), config, tmp_path / "run", resume=True)
    assert again == {"psnr": 3.0}
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_a_run_whose_time_is_over_is_saved_and_goes_on_to_the_same_bytes(tmp_path, config_of, capsys):
    whole, short = config_of(total_steps=6), config_of(total_steps=6, max_hours=1e-9)
    train(create_task(whole), whole, tmp_path / "whole")
    for step in range(1, 7):
        train(create_task(short), short, tmp_path / "parts", resume=step > 1)
        assert (tmp_path / "parts" / "checkpoints" / f"state-{step:08d}.dk").exists()
    assert "step 1: 1e-09 hours are over, saved; continue with --resume" in capsys.readouterr().err
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    losses = [
        [json.loads(line).get("loss_hex") for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_trains_the_same_weights(tmp_path, config_of):
    losses = {}
    for compiled in (False, True):
        config = config_of(total_steps=6, compile=compiled)
        train(create_task(config), config, tmp_path / f"{compiled}")
        lines = (tmp_path / f"{compiled}" / "metrics.jsonl").read_text().splitlines()
        losses[compiled] = [json.loads(line)["loss"] for line in lines if "loss" in line]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)

"""Trainings that differ in where their data comes from and how it is loaded, and must not differ in their bytes."""

from __future__ import annotations

import numpy as np
import pytest

from densekit.tasks import create_task
from densekit.train import train
from tests.training_data import recolour, seg_config, write_masked

PALETTE = np.array([[128, 64, 128], [70, 70, 70], [0, 0, 142]], np.uint8)
COLORS = {"#804080": 0, "#464646": 1, "#00008e": 2}
OPTIONS = {"class_weights": "median-freq", "total_steps": 5, "eval_every": 5, "checkpoint_every": 2}
VARIED = {
    "augment": [
        {"RandomScale": {"scale_limit": [-0.3, 0.3], "p": 1.0}},
        {"OneOf": {"transforms": ["HorizontalFlip", {"Rotate": {"limit": 20}}]}},
    ],
    "focus": "balanced",
    "focus_share": 0.7,
}


def weights(folder, run, *, data=None, resume=False, **options):
    """What a training of 5 steps leaves."""
    config = seg_config(folder, data=data, **{**OPTIONS, **options})
    train(create_task(config), config, run, resume=resume)
    return (run / "last.safetensors").read_bytes()


def test_a_training_on_colours_ends_with_the_bytes_of_one_on_numbers_and_so_does_one_from_a_cache(tmp_path):
    folder = write_masked(tmp_path / "data")
    expected = weights(folder, tmp_path / "numbers")
    recolour(folder, PALETTE)
    data = {"class_map": COLORS}
    assert weights(folder, tmp_path / "colours", data=data) == expected
    assert weights(folder, tmp_path / "cached", data={**data, "cache": str(tmp_path / "cache")}) == expected


class PowerCut(Exception):
    """What ends a run without warning."""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_listed_transforms_focus_and_colours_are_the_same_with_any_number_of_workers_and_after_a_power_cut(tmp_path):
    folder = recolour(write_masked(tmp_path / "data"), PALETTE)
    data = {**VARIED, "class_map": COLORS, "cache": str(tmp_path / "cache")}
    expected = weights(folder, tmp_path / "0", data=data)
    assert weights(folder, tmp_path / "2", data={**data, "num_workers": 2}) == expected
    config = seg_config(folder, data={**data, "num_workers": 1}, **OPTIONS)
    task = create_task(config)
    loss, steps = task.loss, []

    def dying(net, batch):
        steps.append(None)
        if len(steps) == 4:
            raise PowerCut
        return loss(net, batch)

    task.loss = dying
    with pytest.raises(PowerCut):
        train(task, config, tmp_path / "cut")
    assert weights(folder, tmp_path / "cut", data={**data, "num_workers": 2}, resume=True) == expected

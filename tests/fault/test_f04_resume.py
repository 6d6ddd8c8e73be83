"""F4: from any state on, mid-epoch too, a resumed run leaves the trace of the one that went on.

`DENSEKIT_RESUMES` sets the number of random steps from which each run is resumed, such as 50.
"""

from __future__ import annotations

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch

from densekit.tasks import create_task
from densekit.train import train
from tests.processes import Telling
from tests.training_data import seg_config, sr_config, write_masked, write_pictures

RESUMES = int(os.environ.get("DENSEKIT_RESUMES", "8"))
STEPS = 60
FURTHER = 4  # steps that are compared
COSTS = ("steps_per_s", "seconds", "memory")

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120 + 10 * RESUMES)]


class Enough(Exception):
    """So many steps are all that is to be seen."""


def trace(folder, start, end):
    """The bytes of each state after the steps start+1..end, and what was logged of them but for what it cost."""
    states = {
        step: (folder / "checkpoints" / f"state-{step:08d}.dk").read_bytes() for step in range(start + 1, end + 1)
    }
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    kept = [{key: value for key, value in record.items() if key not in COSTS} for record in records]
    return states, [record for record in kept if start < record["step"] <= end]


def further(task, config, reference, folder, step):
    """The trace of the next steps of a run that has the reference's state of `step`, and no later one."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(reference / "checkpoints" / f"state-{step:08d}.dk", folder / "checkpoints")
    shutil.copy(reference / "metrics.jsonl", folder)
    end, left = min(step + FURTHER, STEPS), iter(range(FURTHER * config.train.accumulate))

    def count():
        if next(left, None) is None:
            raise Enough

    seed = random.randrange(2**32)  # what others drew in this process before must not matter
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        train(Telling(task, count), config, folder, resume=True)
    except Enough:
        assert step + FURTHER < STEPS
    return trace(folder, step, end)


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_f04_a_resumed_run_leaves_the_trace_of_the_one_that_went_on(tmp_path, task):
    torch.set_num_threads(1)
    options = {"total_steps": STEPS, "checkpoint_every": 1, "eval_every": 7, "keep": 1000, "samples": 0}
    if task == "sr":
        config = sr_config(write_pictures(tmp_path / "data", count=5), **options)
    else:
        config = seg_config(write_masked(tmp_path / "data", count=5), accumulate=2, freeze_norm_step=40, **options)
    work, reference = create_task(config), tmp_path / "reference"
    train(work, config, reference)
    steps = random.Random(task).sample(range(1, STEPS), min(RESUMES, STEPS - 1))
    draws = config.train.batch_size * config.train.accumulate
    inside = sum(step * draws % len(work.data) > 0 for step in steps)
    assert inside >= len(steps) // 2, "too few of them inside an epoch"

    for step in steps:
        folder = tmp_path / f"from-{step}"
        assert further(work, config, reference, folder, step) == trace(reference, step, min(step + FURTHER, STEPS))
        shutil.rmtree(folder)
    print(json.dumps({"resumed": len(steps), "inside_epoch": inside, "different": 0}))


def test_f04_positive_control_another_seed_leaves_another_trace(tmp_path):
    torch.set_num_threads(1)
    pictures = write_pictures(tmp_path / "data")
    traces = []
    for seed in (5, 6):
        config = sr_config(pictures, total_steps=3, checkpoint_every=1, keep=9, seed=seed, samples=0)
        train(create_task(config), config, tmp_path / str(seed))
        traces.append(trace(tmp_path / str(seed), 0, 3))
    assert all(traces[0][0][step] != traces[1][0][step] for step in (1, 2, 3))
    assert traces[0][1] != traces[1][1]

"""F1 and F2: a run that is killed again and again ends with the bytes of one that never was.

`DENSEKIT_KILLS` sets the number of kills of each test, such as 200. Half of them come at a random time of a step, half
as soon as a half-written file is seen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
import torch
import torch._dynamo  # the first step of an optimizer imports it, which would take longer than a child may live

from densekit.config import Config
from densekit.tasks import create_task
from densekit.train import train
from densekit.train.run import Run
from densekit.train.state import load_state, save_state
from tests.processes import Telling, finish, results, start
from tests.training_data import seg_config, sr_config, write_masked, write_pictures

KILLS = int(os.environ.get("DENSEKIT_KILLS", "10"))
STEPS_AT_MOST = 4  # a child's, before it is killed

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(60 + 20 * KILLS),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def kill_once(action, folder, generator, aim_at_write):
    """Kills a child that has told some times already; says whether it was inside a write, and ended by the kill."""
    pid, reader = start(action)
    told = []
    for _ in range(generator.randrange(1, STEPS_AT_MOST)):
        assert os.read(reader, 1), "the child ended by itself: the run is too short for so many kills"
        told.append(time.monotonic())
    if aim_at_write:
        deadline = time.monotonic() + 2
        while not list(folder.rglob(".*.tmp*")) and time.monotonic() < deadline:
            pass
    else:
        step = (told[-1] - told[0]) / max(len(told) - 1, 1) or 0.05
        time.sleep(generator.uniform(0, step))
    os.killpg(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(reader)
    return bool(list(folder.rglob(".*.tmp*"))), status == -signal.SIGKILL


def killed_and_undisturbed(tmp_path, config, workers):
    """Runs a config twice, once with `KILLS` kills and `workers[i]` loader processes after the i-th; returns both."""
    torch.set_num_threads(1)
    task, generator = create_task(config), random.Random(1)
    steps, inside = [0], 0

    def part(folder, num_workers):
        data = {**config.data.model_dump(), "num_workers": num_workers}
        now = Config.model_validate({**config.model_dump(), "data": data})
        task.config = now
        return lambda tell: train(Telling(task, tell), now, folder, resume=True)

    finish(part(tmp_path / "undisturbed", 0))
    folder = tmp_path / "killed"
    folder.mkdir()
    for kill in range(KILLS):
        was_inside, was_killed = kill_once(part(folder, workers[kill % len(workers)]), folder, generator, kill % 2)
        assert was_killed
        inside += was_inside
        state, damaged = Run(folder, 2).load()
        assert not damaged, "an unreadable state was left behind"
        steps.append(state["step"] if state else 0)
    finish(part(folder, 0))

    assert steps == sorted(steps), "a kill cost a saved step"
    assert steps[-1] > KILLS / 4, "the harness made no progress"
    assert inside >= max(1, KILLS // 5), "too few kills fell inside a write"
    print(json.dumps({"kills": KILLS, "inside_write": inside, "unreadable": 0, "steps": steps[-1]}))
    return results(folder), results(tmp_path / "undisturbed")


def test_f01_a_killed_run_ends_with_the_bytes_of_one_never_killed(tmp_path):
    config = sr_config(
        write_pictures(tmp_path / "pictures"),
        model={"num_features": 32, "growth_rate": 32},
        total_steps=(STEPS_AT_MOST + 1) * KILLS + 5,
        checkpoint_every=1,
        eval_every=7,
    )
    killed, undisturbed = killed_and_undisturbed(tmp_path, config, [0])
    assert killed == undisturbed
    assert sorted(killed[1]) == list(range(1, config.train.total_steps + 1))
    assert all(len(losses) == 1 for losses in killed[1].values())


def test_f02_so_does_one_whose_number_of_workers_changes_after_each_kill(tmp_path):
    config = seg_config(
        write_masked(tmp_path / "data"), total_steps=(STEPS_AT_MOST + 1) * KILLS + 5, checkpoint_every=1, eval_every=50
    )
    killed, undisturbed = killed_and_undisturbed(tmp_path, config, [0, 1, 2])
    assert killed == undisturbed


def unreadable_after_kills(folder, save, load):
    """How many kills leave a file that cannot be read, of a child that writes it over and over."""
    path, state, generator = folder / "state.dk", {"w": torch.rand(4_000_000)}, random.Random(1)
    folder.mkdir()
    state |= dict.fromkeys(("step", "best", "net", "average", "optimizer", "config"), 0)

    def write_on(tell):
        while True:
            save(path, state)
            tell()

    count = 0
    for _ in range(KILLS):
        kill_once(write_on, folder, generator, aim_at_write=False)
        try:
            assert torch.equal(load(path)["w"], state["w"])
        except Exception:  # torch has many kinds
            count += 1
    return count


def test_f01_positive_control_a_plain_save_does_not_survive(tmp_path):
    def plain_save(path, state):
        torch.save(state, path)

    assert unreadable_after_kills(tmp_path / "plain", plain_save, torch.load) > 0
    assert unreadable_after_kills(tmp_path / "ours", save_state, load_state) == 0

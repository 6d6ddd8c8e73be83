"""F10 and F11: two processes do what one does in two passes, and go on to the same bytes when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from densekit.train.state import load_state
from tests.training_data import seg_config, sr_config, write_masked, write_pictures

STEPS = 12


@pytest.fixture
def config_of(tmp_path):
    folders = {"sr": write_pictures(tmp_path / "pictures"), "seg": write_masked(tmp_path / "masked")}

    def make(task, **options):
        # batch norm sees the pictures of its own process alone, so it keeps its statistics here; dropout is on
        frozen = {"freeze_norm_step": 0} if task == "seg" else {}
        config = {"sr": sr_config, "seg": seg_config}[task]
        return config(folders[task], total_steps=STEPS, checkpoint_every=1, keep=100, **frozen, **options)

    return make


def command(task: str, config: Path, run: Path, *extra: str, ranks: int = 1, restarts: int = 0) -> list[str]:
    densekit = [str(Path(sys.executable).with_name("densekit")), task, "train", str(config), "--run", str(run), *extra]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    launch += [
        f"--max-restarts={restarts}",
        "--monitor-interval=0.2",
        "--no-python",
        "--",
    ]  # or it takes our --run for its own
    return [*(launch if ranks > 1 else []), *densekit, "--device", "cpu"]


def run(*args, **options):
    result = subprocess.run(command(*args, **options), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result


def final(folder: Path):
    return load_state(folder / "checkpoints" / f"state-{STEPS:08d}.dk")


def losses(folder: Path):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("loss_hex") or json.loads(line) for line in lines]


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return all(map(equal, a, b))
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sr", "seg"])
def test_two_ranks_equal_one_process_that_accumulates_two_passes(tmp_path, config_of, task):
    for name, options in {"one": {"batch_size": 2, "accumulate": 2}, "two": {"batch_size": 4}}.items():
        (tmp_path / f"{name}.yaml").write_text(config_of(task, **options).to_yaml())
        run(task, tmp_path / f"{name}.yaml", tmp_path / name, ranks=1 + (name == "two"))
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    for key in ("net", "average", "optimizer"):
        assert equal(one[key], two[key]), key
    assert losses(tmp_path / "one") == losses(tmp_path / "two")  # and figures, of pictures shared among the ranks


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused(tmp_path, config_of):
    (tmp_path / "odd.yaml").write_text(config_of("sr", batch_size=3).to_yaml())
    result = subprocess.run(
        command("sr", tmp_path / "odd.yaml", tmp_path / "run", ranks=2), capture_output=True, text=True, timeout=240
    )
    assert result.returncode != 0
    assert "error: train.batch_size=3: cannot be divided among 2 processes; make it a multiple" in result.stderr


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_ranks_that_are_killed_start_again_and_end_with_the_same_bytes(tmp_path, config_of):
    (tmp_path / "config.yaml").write_text(config_of("sr", batch_size=4).to_yaml())
    run("sr", tmp_path / "config.yaml", tmp_path / "whole", ranks=2)
    arguments = command("sr", tmp_path / "config.yaml", tmp_path / "killed", ranks=2, restarts=9)
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for kill in range(1, 4):
        wanted = tmp_path / "killed" / "checkpoints" / f"state-{3 * kill:08d}.dk"
        while not wanted.exists():
            assert process.poll() is None, "the run ended before the kill"
            time.sleep(0.01)
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(children[kill % 2]), signal.SIGKILL)
    assert process.wait(300) == 0
    one, two = final(tmp_path / "whole"), final(tmp_path / "killed")
    assert all(equal(one[key], two[key]) for key in ("net", "average", "optimizer"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")

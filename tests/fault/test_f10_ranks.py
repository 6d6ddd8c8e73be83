"""F10 and F11: two processes do what one does in two passes, and go on to the same bytes when one is killed.

They go on with fewer and with more of them, too, when machines go and come.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from densekit.train.run import Run
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
@pytest.mark.parametrize(("task", "parallel"), [("sr", "ddp"), ("seg", "ddp"), ("sr", "fsdp"), ("seg", "fsdp")])
def test_two_ranks_equal_one_process_that_accumulates_two_passes(tmp_path, config_of, task, parallel):
    two = {"batch_size": 4, "parallel": parallel}
    for name, options in {"one": {"batch_size": 2, "accumulate": 2}, "two": two}.items():
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
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_that_are_killed_start_again_and_end_with_the_same_bytes(tmp_path, config_of, parallel):
    (tmp_path / "config.yaml").write_text(config_of("sr", batch_size=4, parallel=parallel).to_yaml())
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


def machine(number: int, port: int, config: Path, run: Path, folder: Path) -> subprocess.Popen[bytes]:
    """torchrun of one machine of one process, of which one or two train together."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=9"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--monitor-interval=0.2"]
    words += ["--rdzv-conf=last_call_timeout=3,keep_alive_interval=2,keep_alive_max_attempt=5", "--no-python", "--"]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # or torchrun 2.15 loses those that come
    with (folder / f"machine-{number}").open("w") as file:
        return subprocess.Popen(
            [*words, *command("sr", config, run, "--resume")], env=environment, stdout=file, stderr=file
        )


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_a_run_goes_on_while_machines_go_and_come(tmp_path, config_of):
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(
        config_of("sr", batch_size=4, samples=0).to_yaml().replace(f"total_steps: {STEPS}", "total_steps: 100000")
    )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def steps() -> int:
        return max((int(path.stem.split("-")[1]) for path in run.glob("checkpoints/state-*.dk")), default=0)

    def says(number: int, text: str, times: int = 1) -> bool:
        return (tmp_path / f"machine-{number}").read_text().count(text) >= times

    def wait_for(condition) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert all(process.poll() is None for process in running), "a machine ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    running = [machine(0, port, config, run, tmp_path)]
    try:
        wait_for(lambda: is_open(port))  # the first keeps the store, and is not the one that is lost
        running.append(machine(1, port, config, run, tmp_path))
        wait_for(lambda: steps() > 10)
        lost = running.pop()
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(lost.pid)], capture_output=True, text=True)
        for pid in (lost.pid, *map(int, children.stdout.split())):
            os.kill(pid, signal.SIGKILL)
        lost.wait()
        wait_for(lambda: says(0, "process 0 of 2 has lost the others") and says(0, "densekit 0.", 2))
        alone = steps()
        wait_for(lambda: steps() > alone + 10)
        running.append(machine(2, port, config, run, tmp_path))
        wait_for(lambda: says(2, "densekit 0.") and says(0, "densekit 0.", 3))
        together = steps()
        wait_for(lambda: steps() > together + 10)
        assert not says(2, "error")
        assert says(0, "interrupted at step")  # to begin anew with the other
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(60)
    assert Run(run, 2).load()[1] == []

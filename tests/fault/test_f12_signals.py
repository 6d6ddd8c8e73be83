"""F12: a run that SIGTERM or SIGINT ends at any point is saved within one step, says so, and goes on to the same bytes.

`DENSEKIT_SIGNALS` sets the number of random points, such as 50; SIGTERM and SIGINT take turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the first step of an optimizer imports it

import densekit.tasks
from densekit import cli
from densekit.tasks import create_task
from densekit.train import train
from densekit.train.run import Run
from densekit.train.state import load_state
from tests.processes import Telling, finish, results, start
from tests.training_data import seg_config, sr_config, write_masked, write_pictures

SIGNALS = int(os.environ.get("DENSEKIT_SIGNALS", "10"))
STEPS_AT_MOST = 4  # of a child, before its signal
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(120 + 20 * SIGNALS),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def signalled(command, folder, generator, signum):
    """Starts a command in a child, signals it at a random time of a random step; says what came of it.

    Returns:
        its exit code; its lines of error; the passes it had begun at the signal; those it had begun when it ended.
    """
    make, stderr = densekit.tasks.create_task, folder / "stderr"

    def run(tell):
        densekit.tasks.create_task = lambda config: Telling(make(config), tell)
        with stderr.open("w") as file, contextlib.redirect_stderr(file):
            os._exit(cli.main(command))

    pid, reader = start(run)
    told = []
    for _ in range(generator.randrange(1, STEPS_AT_MOST + 1)):
        assert os.read(reader, 1), "the child ended by itself: the run is too short for so many signals"
        told.append(time.monotonic())
    step = (told[-1] - told[0]) / max(len(told) - 1, 1) or 0.05
    time.sleep(generator.uniform(0, 1.5 * step))
    os.kill(pid, signal.SIGSTOP)  # now it takes no further step, and what it told can be counted
    os.waitpid(pid, os.WUNTRACED)
    os.set_blocking(reader, False)
    begun = len(told) + len(os.read(reader, 10_000) if readable(reader) else b"")
    os.kill(pid, signum)
    os.kill(pid, signal.SIGCONT)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ended = begun + len(os.read(reader, 10_000) if readable(reader) else b"")
    os.close(reader)
    return code, stderr.read_text().splitlines(), begun, ended


def readable(reader):
    return bool(select.select([reader], [], [], 0)[0])


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_f12_a_run_that_signals_end_again_and_again_ends_with_the_same_bytes(tmp_path, task):
    torch.set_num_threads(1)
    options = {
        "total_steps": (STEPS_AT_MOST + 3) * SIGNALS + 5,
        "checkpoint_every": 1000,  # no state but those that signals leave
        "eval_every": 9,
        "samples": 0,
    }
    if task == "sr":
        config = sr_config(write_pictures(tmp_path / "data"), **options)
    else:
        config = seg_config(write_masked(tmp_path / "data"), **options)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    whole, folder, generator = tmp_path / "whole", tmp_path / "run", random.Random(1)
    finish(lambda tell: train(create_task(config), config, whole))

    command = [task, "train", str(tmp_path / "config.yaml"), "--run", str(folder), "--device", "cpu", "--resume"]
    folder.mkdir()
    late, done = 0, 0
    for number in range(SIGNALS):
        signum = (signal.SIGTERM, signal.SIGINT)[number % 2]
        code, lines, begun, ended = signalled(command, folder, generator, signum)
        assert code == CODES[signum], lines
        state, damaged = Run(folder, 2).load()
        assert not damaged
        assert state["step"] == done + ended
        assert ended - begun <= 1, "it took more than the step under way and the one after"
        late, done = late + (ended > begun), state["step"]
        assert lines[-2:] == [
            f"continue with: densekit {shlex.join(command)}",
            f"error: interrupted at step {done}, saved in {folder}/checkpoints; continue with --resume",
        ]
        assert not any("Traceback" in line for line in lines)
    finish(lambda tell: train(create_task(config), config, folder, resume=True))
    assert results(folder) == results(whole)
    print(json.dumps({"signals": SIGNALS, "saved": SIGNALS, "one_step_later": late, "steps": done}))


def launched(config, run, *extra):
    words = [str(Path(sys.executable).with_name("densekit")), "sr", "train", str(config), "--run", str(run), *extra]
    return subprocess.Popen([*words, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_f12_what_it_says_to_continue_with_does_so(tmp_path, signum):
    config = sr_config(write_pictures(tmp_path / "the data"), total_steps=400, eval_every=400, data={"num_workers": 1})
    file, run = tmp_path / "a config.yaml", tmp_path / "run"
    file.write_text(config.to_yaml())
    process = launched(file, run, "train.checkpoint_every=500")
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (CODES[signum], ""), err
    line = next(line for line in err.splitlines() if line.startswith("continue with: densekit "))
    step = Run(run, 2).load()[0]["step"]
    assert f"error: interrupted at step {step}, saved in" in err.splitlines()[-1]
    assert 0 < step < 400

    words = shlex.split(line.removeprefix("continue with: densekit "))
    program = str(Path(sys.executable).with_name("densekit"))
    again = subprocess.run([program, *words], capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    whole = launched(file, tmp_path / "whole", "train.checkpoint_every=500")
    whole.communicate(timeout=240)
    assert whole.returncode == 0
    for name in ("last.safetensors", "checkpoints/state-00000400.dk"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_f12_the_second_signal_ends_a_step_that_does_not_end(tmp_path):
    torch.set_num_threads(1)
    config = sr_config(write_pictures(tmp_path / "data"), total_steps=6, checkpoint_every=2, samples=0)
    task = create_task(config)

    def stuck(tell):
        passes = iter(range(4))

        def wait():
            tell()
            while next(passes, None) is None:
                time.sleep(0.01)

        train(Telling(task, wait), config, tmp_path / "run")

    pid, reader = start(stuck)
    for _ in range(5):
        assert os.read(reader, 1)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the first signal lets the step end"
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    os.close(reader)
    assert load_state(tmp_path / "run" / "checkpoints" / "state-00000004.dk")["step"] == 4
    train(task, config, tmp_path / "run", resume=True)
    train(task, config, tmp_path / "whole")
    assert results(tmp_path / "run") == results(tmp_path / "whole")

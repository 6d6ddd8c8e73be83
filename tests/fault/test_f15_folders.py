"""F15 for trainings: a run whose folder is taken, closed or of another config is refused before it does anything.

What prediction refuses is tested with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the first step of an optimizer imports it

import densekit.tasks
from densekit import cli
from densekit.tasks import create_task
from densekit.train import train
from tests.processes import Telling, finish, results, start
from tests.training_data import sr_config, write_pictures

NOBODY = 65534

pytestmark = [pytest.mark.fault, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture
def place():
    """A folder that another user can enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def config(place):
    torch.set_num_threads(1)
    config = sr_config(write_pictures(place / "pictures"), total_steps=6, checkpoint_every=2, keep=9, samples=0)
    (place / "config.yaml").write_text(config.to_yaml())
    return config


def command(place, *extra):
    return ["sr", "train", str(place / "config.yaml"), *extra, "--run", str(place / "run"), "--device", "cpu"]


def told(place, *extra, user=None):
    """The exit code of a training in a forked child, of another user if one is named, and what it says on stderr."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        stderr, code = Path(folder, "stderr"), Path(folder, "code")

        def run(tell):
            if user is not None:
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            with stderr.open("w") as file, contextlib.redirect_stderr(file):
                result = cli.main(command(place, *extra))
            code.write_text(str(result))

        finish(run)
        return int(code.read_text()), stderr.read_text().splitlines()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_f15_a_second_run_in_a_folder_is_refused_and_told_who_holds_it(place, config):
    def hold(tell):
        make = densekit.tasks.create_task
        densekit.tasks.create_task = lambda config: Telling(make(config), lambda: (tell(), time.sleep(0.05)))
        cli.main(command(place, "train.total_steps=100000"))

    holder, reader = start(hold)
    try:
        for _ in range(3):
            assert os.read(reader, 1)
        for resume in ([], ["--resume"]):
            began = time.monotonic()
            code, lines = told(place, *resume)
            assert code == 2
            assert lines[-1] == f"error: {place / 'run'} is in use by process {holder}; wait or choose another --run"
            assert time.monotonic() - began < 20
        assert os.waitpid(holder, os.WNOHANG) == (0, 0), "the first run ended"
        assert os.read(reader, 1), "and is stuck"
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(reader)
    code, lines = told(place, "train.total_steps=100000")  # the lock went with its process, the state stayed
    assert code == 2
    assert " already holds a run at step " in lines[-1]


def as_nobody(place):
    """The user that a folder of root's is closed to; where tests are no root's, they are such a user themselves."""
    for path in (place, *place.rglob("*")):
        path.chmod(path.stat().st_mode | 0o444)
    return NOBODY if os.geteuid() == 0 else None


@pytest.mark.parametrize(
    ("closed", "error"),
    [
        ("run", "run: cannot be written: Permission denied; choose another --run"),
        ("run/checkpoints", "run/checkpoints: cannot be written: Permission denied; choose another --run"),
        (".", "run: cannot be made or written: Permission denied"),
    ],
)
def test_f15_a_folder_that_cannot_be_written_is_refused_before_any_work(place, config, closed, error):
    if closed != ".":
        work = create_task(config)
        train(work, config, place / "run")
        (place / "run" / "checkpoints" / "state-00000006.dk").unlink()
    user = as_nobody(place)
    if user is not None:
        os.chown(place, user, user)
        for path in place.rglob("*"):
            os.chown(path, user, user)
    before = contents(place)
    (place / closed).chmod(0o555)
    code, lines = told(place, "--resume", user=user)
    assert (code, lines[-1]) == (2, f"error: {place}/{error}")
    assert contents(place) == before

    (place / closed).chmod(0o755)
    assert told(place, "--resume", user=user)[0] == 0
    if closed != ".":
        train(work, config, place / "whole")
        assert results(place / "run")[0] == results(place / "whole")[0]


def test_f15_a_stale_config_is_explained_key_by_key(place, config):
    train(create_task(config), config, place / "run")
    before = contents(place / "run")
    changes = {"train.seed": 6, "optim.learning_rate": 0.01, "model.num_layers": 3, "train.keep": 5}
    words = [f"{key}={value}" for key, value in changes.items()]
    code, lines = told(place, *words, "--resume")
    assert code == 2
    assert lines[-1].startswith(
        f"error: {place / 'run'}: began with another config: model.num_layers (2 -> 3), optim.learning_rate "
        "(0.005 -> 0.01), train.seed (5 -> 6); take these back or choose another --run (free to change: "
    )
    assert "train.keep" in lines[-1].partition("free to change: ")[2]
    assert sum(line.startswith("error") for line in lines) == 1
    assert contents(place / "run") == before
    assert told(place, "train.keep=5", "--resume")[0] == 0

"""F3: a save is the old file or the new one, whatever power and disk do.

Power: what is written is flushed to the disk before it gets its name, and the name before anything else is begun. This
is read from the system calls of a run, by strace where it is there, and by functions put in place of Python's.
Disk: a limit on file sizes, a file system that is full, and a failure at every call that could fail, one after another.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the first step of an optimizer imports it

from densekit import cli
from densekit.tasks import create_task
from densekit.train import train
from densekit.train.run import Run
from densekit.train.state import load_state, save_state
from tests.processes import Telling, finish, results
from tests.training_data import sr_config, write_pictures

pytestmark = [pytest.mark.fault, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SAVED = re.compile(r"/(state-\d+\.dk|last\.safetensors|best\.safetensors|config\.yaml)$")
CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_PRIVATE = 0x20000, 0x10000000, 0x4000, 0x40000  # sched.h, mount.h


@pytest.fixture
def config(tmp_path):
    torch.set_num_threads(1)
    pictures = write_pictures(tmp_path / "pictures")
    config = sr_config(pictures, total_steps=6, checkpoint_every=2, eval_every=3, keep=100, samples=0)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    return config


def command(tmp_path, *extra):
    return ["sr", "train", str(tmp_path / "config.yaml"), *extra, "--run", str(tmp_path / "run"), "--device", "cpu"]


def recorded(action, file):
    """What a forked child writes, flushes and renames while it does `action()`: (call, path, size or new name)."""

    def record(tell):
        events, fsync, replace = [], os.fsync, os.replace

        def note_fsync(descriptor):
            events.append(["fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()), os.fstat(descriptor).st_size])
            fsync(descriptor)

        def note_replace(old, new):
            if written_since(events, old):
                events.append(["write", str(old), None])
            events.append(["rename", str(old), str(new)])
            replace(old, new)

        def note_open(event, arguments):
            if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
                events.append(["write", str(Path(os.fsdecode(arguments[0])).absolute()), None])

        os.fsync, os.replace = note_fsync, note_replace
        sys.addaudithook(note_open)  # it cannot be taken out again, but the process ends
        action()
        file.write_text(json.dumps(events))

    finish(record)
    return json.loads(file.read_text())


def written_since(events, path):
    """Says whether a file has another size than when it was flushed last."""
    sizes = [size for call, name, size in events if call == "fsync" and name == str(path)]
    return not sizes or Path(path).stat().st_size != sizes[-1]


def straced(words, file):
    """The same of a command line in a process of its own, from its system calls."""
    calls = "trace=openat,write,fsync,rename,renameat,renameat2"
    process = [str(Path(sys.executable).with_name("densekit")), *words]
    subprocess.run(["strace", "-f", "-ff", "-y", "-e", calls, "-o", file, *process], check=True, capture_output=True)
    events = []
    for line in max(file.parent.glob(f"{file.name}.*"), key=lambda path: path.stat().st_size).read_text().splitlines():
        if found := re.match(r"(write|fsync)\(\d+<(.*?)>", line):
            events.append([found[1], found[2], None])
        elif found := re.match(
            r'rename(?:at2?)?\((?:AT_FDCWD(?:<.*?>)?, )?"(.*?)", (?:AT_FDCWD(?:<.*?>)?, )?"(.*?)"', line
        ):
            events.append(["rename", found[1], found[2]])
    return events


def faults(events):
    """What a loss of power between two calls could spoil."""
    flushed, found = set(), []
    for index, (call, path, new) in enumerate(events):
        if call == "fsync":
            flushed.add(path)
        elif call == "write":
            flushed.discard(path)
            if SAVED.search(path):
                found.append(f"{path} is written in place")
        elif call == "rename" and SAVED.search(new):
            if path not in flushed:
                found.append(f"{new} gets its name before its bytes are flushed")
            following = events[index + 1][:2] if index + 1 < len(events) else None
            if following != ["fsync", str(Path(new).parent)]:
                found.append(f"the folder is not flushed once {new} has its name")
    return found


def names(events):
    return {SAVED.search(new)[1] for call, _, new in events if call == "rename" and SAVED.search(new)}


WRITTEN = {*(f"state-{step:08d}.dk" for step in (2, 4, 6)), "last.safetensors", "best.safetensors", "config.yaml"}


def test_bytes_reach_the_disk_before_their_name_and_the_name_before_anything_else(tmp_path, config):
    events = recorded(lambda: train(create_task(config), config, tmp_path / "run"), tmp_path / "events")
    assert names(events) == WRITTEN
    assert faults(events) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_so_the_system_calls_say(tmp_path, config):
    events = straced(command(tmp_path), tmp_path / "trace")
    if not events:
        pytest.skip("strace may not look into processes here")
    assert names(events) == WRITTEN
    assert sum(call == "write" for call, *_ in events) > 6
    assert faults(events) == []


def plain_save(path, state):
    with path.open("wb") as file:
        torch.save(state, file)


def save_then_rename(path, state):
    plain_save(path.with_name("new"), state)
    path.with_name("new").replace(path)


@pytest.mark.parametrize(
    ("save", "count", "text"), [(plain_save, 1, "is written in place"), (save_then_rename, 2, "before its bytes are")]
)
def test_positive_control_other_ways_to_save_are_faulty(tmp_path, save, count, text):
    state = {"w": torch.rand(1000)}
    found = faults(recorded(lambda: save(tmp_path / "state-00000001.dk", state), tmp_path / "events"))
    assert len(found) == count
    assert text in found[0]


def trained(tmp_path, words, *, before=lambda: None):
    """The exit code of a command in a forked child that did something before, and its lines of error."""

    def run(tell):
        before()
        with (tmp_path / "stderr").open("w") as file, contextlib.redirect_stderr(file):
            code = cli.main(words)
        (tmp_path / "code").write_text(str(code))

    finish(run)
    lines = (tmp_path / "stderr").read_text().splitlines()
    return int((tmp_path / "code").read_text()), [line for line in lines if line.startswith(("error", "Traceback"))]


def died_after(config, folder, passes):
    """Trains in a child that ends without another word once it has begun so many forward passes."""

    def run(tell):
        left = iter(range(passes))
        train(Telling(create_task(config), lambda: next(left, None) is None and os._exit(0)), config, folder)

    finish(run)


def whole_states(folder):
    assert not list(folder.rglob("*.tmp*")), "a half-written file was left behind"
    return {path.name: load_state(path)["step"] for path in folder.glob("checkpoints/*")}


@pytest.fixture
def undisturbed(tmp_path, config):
    train(create_task(config), config, tmp_path / "undisturbed")
    return results(tmp_path / "undisturbed")


@pytest.mark.parametrize("victim", ["checkpoints/state-00000006.dk", "last.safetensors"])
def test_a_file_that_grows_too_large_costs_nothing_that_was_there(tmp_path, config, undisturbed, victim):
    size = (tmp_path / "undisturbed" / victim).stat().st_size
    died_after(config, tmp_path / "run", 5)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*[0-9].dk")}
    assert len(before) == 2
    best = (tmp_path / "run" / "best.safetensors").read_bytes()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, resource.RLIM_INFINITY))  # Python ignores its signal

    code, errors = trained(tmp_path, command(tmp_path, "--resume"), before=limit)
    assert (code, errors) == (1, [f"error: {tmp_path / 'run' / victim}: File too large"])
    assert all(path.read_bytes() == data for path, data in before.items())
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == best or victim != "last.safetensors"
    assert len(whole_states(tmp_path / "run")) == 2
    assert trained(tmp_path, command(tmp_path, "--resume")) == (0, [])
    assert results(tmp_path / "run") == undisturbed


def mount(folder, size):
    """Gives this process a file system of its own in `folder`, of `size` bytes, that goes with it.

    Raises:
        OSError: it may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = CLONE_NEWNS if os.geteuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER
    for call, arguments in (
        (libc.unshare, (flags,)),
        (libc.mount, (b"none", b"/", None, MS_REC | MS_PRIVATE, None)),
        (libc.mount, (b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())),
    ):
        if call(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_a_full_disk_costs_nothing_that_was_there(tmp_path, config, undisturbed):
    folder = tmp_path / "run"
    folder.mkdir()
    size = (tmp_path / "undisturbed" / "checkpoints" / "state-00000006.dk").stat().st_size + 4096
    early = [path for path in (tmp_path / "undisturbed").glob("*.*") if path.suffix != ".html"]
    room = sum(path.stat().st_size + 4096 for path in early) + int(2.6 * size)

    def fill(tell):
        try:
            mount(folder, 100_000_000 + room)
        except OSError as error:
            (tmp_path / "skip").write_text(str(error))
            return
        (folder / "others").write_bytes(bytes(100_000_000))
        with (tmp_path / "stderr").open("w") as file, contextlib.redirect_stderr(file):
            code = cli.main(command(tmp_path))
            held = whole_states(folder)
            (folder / "others").unlink()
            again = cli.main(command(tmp_path, "--resume"))
        assert (code, sorted(held.values()), again) == (1, [2, 4], 0)
        assert results(folder) == undisturbed

    finish(fill)
    if (tmp_path / "skip").exists():
        pytest.skip(f"no file system can be mounted here: {(tmp_path / 'skip').read_text()}")
    errors = [line for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("error")]
    assert errors == [f"error: {folder / 'checkpoints' / 'state-00000006.dk'}: No space left on device"]


def failing(at):
    """Functions in place of `os.fsync` and `os.replace`, of whose calls the one numbered `at` finds the disk full."""
    calls = iter(range(10_000))

    def wrap(function):
        def call(*arguments):
            if next(calls) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments)

        return call

    return {name: wrap(getattr(os, name)) for name in ("fsync", "replace")}, calls


def test_a_disk_that_is_full_at_any_call_costs_nothing_that_was_there(tmp_path, config, undisturbed, monkeypatch):
    count = 0
    for at in range(10_000):
        folder, (functions, calls) = tmp_path / f"run-{at}", failing(at)
        with monkeypatch.context() as patch:
            for name, function in functions.items():
                patch.setattr(os, name, function)
            with contextlib.suppress(OSError):
                train(create_task(config), config, folder)
                count = next(calls)
        if count:
            break
        steps = sorted(whole_states(folder).values())
        assert steps == [2, 4, 6][: len(steps)]
        if steps:
            assert Run(folder, 2).load()[1] == []
        train(create_task(config), config, folder, resume=True)
        assert results(folder) == undisturbed
        shutil.rmtree(folder)
    assert count >= 3 * len(WRITTEN)
    print(json.dumps({"calls": count, "unreadable": 0, "left_behind": 0}))


def test_positive_control_a_plain_save_loses_the_old_file_on_a_full_disk(tmp_path):
    state = dict.fromkeys(("step", "best", "net", "average", "optimizer", "config"), 0) | {"w": torch.rand(50_000)}

    def survives(save, load):
        path = tmp_path / save.__name__
        save(path, state)

        def again(tell):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            with contextlib.suppress(Exception):
                save(path, state)

        finish(again)
        try:
            return torch.equal(load(path)["w"], state["w"])
        except Exception:  # torch has many kinds
            return False

    assert survives(save_state, load_state)
    assert not survives(plain_save, torch.load)

"""Forked processes for tests: alone, or several that train together. Their imports are the parent's, so they start at
once."""

from __future__ import annotations

import datetime
import json
import os
import sys
import traceback

import torch
import torch.distributed as dist


def start(action):
    """Runs `action(tell)` in a forked child and process group of its own; returns its pid and the end of a pipe.

    What the child tells, a byte at a time, can be read there. A fork and no fresh interpreter: imports would take up
    all the time between two kills, and no run would ever get on.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            action(lambda: os.write(writer, b"."))
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stdout__)
        finally:
            os._exit(code)
    os.close(writer)
    return pid, reader


def finish(action):
    """Runs `action(tell)` in a forked child to its end."""
    pid, reader = start(action)
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def together(folder, action, count=2):
    """Returns what `action()` returns in each of `count` forked processes that are joined over gloo, by rank."""
    folder.mkdir(parents=True, exist_ok=True)

    def rank(number):
        def run(tell):
            store = dist.FileStore(str(folder / "meeting"), count)
            timeout = datetime.timedelta(seconds=60)
            dist.init_process_group("gloo", store=store, rank=number, world_size=count, timeout=timeout)
            torch.save(action(), folder / f"result-{number}")
            dist.destroy_process_group()

        return run

    (folder / "meeting").unlink(missing_ok=True)
    children = [start(rank(number)) for number in range(count)]
    codes = []
    for pid, reader in children:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os.close(reader)
    assert codes == [0] * count
    return [torch.load(folder / f"result-{number}", weights_only=True) for number in range(count)]


class Telling:
    """A task that tells of each step."""

    def __init__(self, task, tell):
        self.task, self.tell = task, tell

    def __getattr__(self, name):
        return getattr(self.task, name)

    def loss(self, net, batch):
        self.tell()
        return self.task.loss(net, batch)


def results(folder):
    """The last state, the models, and step -> losses that were logged."""
    files = {
        path.name: path.read_bytes() for path in [*folder.glob("*.safetensors"), max(folder.glob("checkpoints/*"))]
    }
    losses: dict[int, set[str]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "loss_hex" in record:
            losses.setdefault(record["step"], set()).add(record["loss_hex"])
    return files, losses

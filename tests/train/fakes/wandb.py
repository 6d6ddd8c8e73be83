"""As much of wandb's API as runs use, with its signatures. What is logged lies in STORED by the id of the run."""

from __future__ import annotations

import os

INITS: list[dict] = []
STORED: dict[str, list[tuple[int, dict]]] = {}  # of the server, or of the newest file offline
FAULT: list[Exception] = []  # raised by the next call


class Settings:
    def __init__(self, *, console="auto"):
        self.console = console


class Image:
    def __init__(
        self, data_or_path, mode=None, caption=None, grouping=None, classes=None, boxes=None, masks=None, file_type=None
    ):
        self.pixels = data_or_path


class Run:
    def __init__(self, rows):
        self.rows, self.is_open = rows, True
        self.step = rows[-1][0] + 1 if rows else 0

    def log(self, data, step=None, commit=None):
        if FAULT:
            raise FAULT[0]
        assert self.is_open
        assert not self.rows or step >= self.rows[-1][0], "wandb ignores steps that go back"
        self.rows.append((step, dict(data)))

    def finish(self, exit_code=None):
        self.is_open = False


def init(
    entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
    config_exclude_keys=None, config_include_keys=None, allow_val_change=None, group=None, job_type=None, mode=None,
    force=None, reinit=None, resume=None, resume_from=None, fork_from=None, save_code=None, tensorboard=None,
    sync_tensorboard=None, monitor_gym=None, settings=None,
):  # fmt: skip
    if FAULT:
        raise FAULT[0]
    print("wandb: a line on stdout")
    INITS.append({"project": project, "dir": dir, "id": id, "name": name, "config": config, "resume": resume})
    INITS[-1] |= {"mode": mode or os.environ.get("WANDB_MODE", "online"), "console": settings.console}
    if resume != "allow":
        STORED.pop(id, None)  # an offline part is a file of its own
    return Run(STORED.setdefault(id, []))

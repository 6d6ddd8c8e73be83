"""As much of Trackio's API as runs use, with its signatures. What is logged lies in STORED by the name of the run."""

from __future__ import annotations

import numpy as np

INITS: list[dict] = []
STORED: dict[str, list[tuple[int, dict]]] = {}
OPEN: list[Run] = []


class Image:
    def __init__(self, value, caption=None):
        assert value.dtype == np.uint8
        self.pixels = value


class Run:
    def __init__(self, rows):
        self.rows = rows

    def log(self, metrics: dict, step=None):
        assert self in OPEN
        self.rows.append((step, dict(metrics)))

    def finish(self):
        OPEN.remove(self)


def init(
    project, name=None, group=None, space_id=None, server_url=None, dataset_id=None, bucket_id=None, config=None,
    resume="never", settings=None, private=None, embed=True, auto_log_gpu=None, gpu_log_interval=10.0,
    auto_log_cpu=None, cpu_log_interval=10.0, webhook_url=None, webhook_min_level=None,
):  # fmt: skip
    print(f"* Trackio project initialized: {project}")
    INITS.append({"project": project, "name": name, "resume": resume, "config": config})
    assert resume == "allow" or name not in STORED
    OPEN.append(Run(STORED.setdefault(name, [])))
    return OPEN[-1]


def finish():
    OPEN[-1].finish()

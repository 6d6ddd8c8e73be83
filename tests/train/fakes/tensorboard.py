"""Torch's writer for TensorBoard, with its signatures. Events lie in FILES by folder, a list for each writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILES: dict[str, list[SummaryWriter]] = {}


class SummaryWriter:
    def __init__(
        self, log_dir=None, comment="", purge_step=None, max_queue=10, flush_secs=120, filename_suffix=""
    ):  # fmt: skip
        self.purge_step, self.events, self.is_open = purge_step, [], True
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        FILES.setdefault(log_dir, []).append(self)

    def add_scalar(
        self, tag, scalar_value, global_step=None, walltime=None, new_style=False, double_precision=False
    ):  # fmt: skip
        assert self.is_open
        self.events.append((tag, global_step, float(scalar_value)))

    def add_image(self, tag, img_tensor, global_step=None, walltime=None, dataformats="CHW"):
        assert dataformats == "HWC"
        assert img_tensor.dtype == np.uint8
        self.events.append((tag, global_step, img_tensor.shape))

    def add_text(self, tag, text_string, global_step=None, walltime=None):
        self.events.append((tag, global_step, text_string))

    def close(self):
        self.is_open = False


def shown(folder) -> list[tuple]:
    """What TensorBoard shows of a folder: a writer's start hides older events from its `purge_step` on."""
    events: list[tuple] = []
    for writer in FILES[str(folder)]:
        events = [event for event in events if event[1] < writer.purge_step] + writer.events
    return events

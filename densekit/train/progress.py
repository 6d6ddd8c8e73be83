"""What a person sees of a running job: a rich bar on a terminal, one line each 10 % elsewhere; all on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from densekit import ranks


class Watch:
    """Shows the steps of a run.

    Args:
        total: steps of the whole run.
        start: steps already done.
    """

    def __init__(self, total: int, start: int) -> None:
        self.console: Console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        self.total = total
        self.start = start
        self.began: float = time.monotonic()
        self.tenth: int = start * 10 // total
        self.bar: Progress | None = None
        self.note: str = ""
        self.is_silent: bool = ranks.rank() > 0
        if self.console.is_terminal and not self.is_silent:
            self.bar = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[rate]}", markup=False), TextColumn("{task.fields[note]}", markup=False),
                console=self.console, refresh_per_second=5,
            )  # fmt: skip
            self.task: TaskID = self.bar.add_task("training", total=total, completed=start, rate="", note="")

    def __enter__(self) -> Watch:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int, note: str = "") -> None:
        """Shows that `step` steps are done, with a note such as the loss; an empty one leaves the last one there."""
        self.note = note or self.note
        rate = (step - self.start) / max(time.monotonic() - self.began, 1e-9)
        if self.bar:
            self.bar.update(self.task, completed=step, rate=f"{rate:.2f} steps/s", note=self.note)
        elif step * 10 // self.total > self.tenth:
            self.tenth = step * 10 // self.total
            left = (self.total - step) / rate
            self.say(f"step {step}/{self.total}  {rate:.2f} steps/s  {left / 60:.0f} min left  {self.note}")

    def say(self, line: str) -> None:
        """Prints one line on stderr, above the bar where there is one."""
        if self.bar:
            self.bar.console.print(line)
        elif not self.is_silent:
            print(line, file=sys.stderr, flush=True)  # noqa: T201


def warn(line: str) -> None:
    """Prints one line of warning on stderr."""
    print(f"warning: {line}", file=sys.stderr, flush=True)  # noqa: T201

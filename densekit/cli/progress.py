"""What a person sees of a batch: one line for each file, under it a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click

from densekit.files import printable

if TYPE_CHECKING:
    from rich.progress import Progress

QUIET = 10.0  # seconds without a line, off a terminal, before a file that takes long says how far it is


class Watch:
    """Shows how far a batch is, on stderr, and keeps that apart from the results on stdout.

    The bar counts bytes of the input files, which stand for their pixels: those are not known before decoding.

    Args:
        sources: the files, in the order in which `begin` will name them.
    """

    def __init__(self, sources: Sequence[Path]) -> None:
        self._sizes = [_size(path) for path in sources]
        self._done = 0  # bytes of the files before the present one
        self._index = -1
        self._name = ""
        self._began = self._spoke = time.monotonic()
        self._tenth = 0
        self._bar = _create_bar(sum(self._sizes)) if _is_terminal() else None

    def __enter__(self) -> Watch:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, source: Path) -> None:
        """Shows that the next file is under way."""
        if self._index >= 0:
            self._done += self._sizes[self._index]
        self._index += 1
        self._name, self._tenth, self._began = printable(source), 0, time.monotonic()
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, name=self._name[-40:], note="")

    def tile(self, done: int, total: int) -> None:
        """Shows that `done` of `total` pixels of the present file are computed."""
        seconds = time.monotonic() - self._began
        if self._bar:
            completed = self._done + self._sizes[self._index] * done / total
            note = f"{done / total:.0%} of it, {done / max(seconds, 1e-3) / 1e6:.2f} MP/s"
            self._bar.update(self._bar.task_ids[0], completed=completed, note=note)
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            if time.monotonic() - self._spoke > QUIET and done < total:
                self.say(f"{self._name}  {done / total:.0%}  {seconds / done * (total - done):.0f} s left")

    def say(self, line: str) -> None:
        """Prints a line on stderr."""
        self._spoke = time.monotonic()
        self._print(line.encode(errors="backslashreplace"), to_stderr=True)

    def result(self, line: str | Path) -> None:
        """Prints a line on stdout, a path with the very bytes of its name."""
        self._print(os.fsencode(line), to_stderr=False)

    def _print(self, line: bytes, *, to_stderr: bool) -> None:
        if self._bar:  # it would share a line with the text where stdout is the same terminal
            self._bar.stop()
        click.echo(line, err=to_stderr)
        if self._bar:
            self._bar.start()


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _create_bar(total: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.fields[name]}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True, markup=False, highlight=False, soft_wrap=True),
        # rich would send what goes to stdout to its own console, that is, to stderr
        redirect_stdout=False, redirect_stderr=False, transient=True,
    )  # fmt: skip
    bar.add_task("", total=total, name="", note="")
    return bar


def _size(path: Path) -> int:
    try:
        return path.stat().st_size + 1
    except OSError:
        return 1

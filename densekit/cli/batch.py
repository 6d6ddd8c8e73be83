"""Many files through one function: bad ones are one line each, the others are done all the same."""

from __future__ import annotations

import errno
import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densekit.cli.plan import Job
from densekit.cli.process import Terminated, describe, terminable
from densekit.cli.progress import Watch
from densekit.errors import DensekitError, DeviceError, ImageError, Interrupted
from densekit.files import printable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last is what a limit on file sizes gives


class Unwritten(DensekitError):
    """A result that could not be written."""


class DiskFull(Unwritten):
    """One that could not be written because there is no space, which the next one would not find either."""


@dataclass
class Done:
    """What became of one input.

    Attributes:
        outputs: files that were written, the result first.
        line: sizes and tiles, for people.
        record: the same and more, for `--json`.
        warnings: one line for each thing that was lost.
    """

    outputs: list[Path]
    line: str
    record: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


OnTile = Callable[[int, int], None]  # pixels done, pixels in all
Work = Callable[[Job, OnTile], Done]


def run_batch(jobs: list[Job], work: Work, *, as_json: bool, debug: bool) -> int:
    """Runs every job and returns the exit code.

    That is 0 if all are done, 1 if some are, else the code that all failures share, or 1. Results go to stdout as they
    are finished, one path or JSON object a line; the rest goes to stderr.

    Args:
        jobs: in this order.
        work: does one, calling its second argument with the pixels done and in all.
        as_json: one object for each input instead of paths.
        debug: whether failures show their traceback.

    Raises:
        Interrupted: SIGINT or SIGTERM; finished files are whole.
    """
    done = 0
    failures: list[Exception] = []
    with Watch([job.source for job in jobs]) as watch:
        try:
            with terminable():
                for job in jobs:
                    watch.begin(job.source)
                    try:
                        finished = work(job, watch.tile)
                    except Exception as error:
                        failures.append(_ours(error))
                        if debug:
                            watch.say(traceback.format_exc().rstrip())
                        _report_failure(watch, job, failures[-1], as_json)
                        if isinstance(error, DiskFull):
                            break
                    else:
                        done += 1
                        _report(watch, job, finished, as_json)
        except KeyboardInterrupt as error:
            signum = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            raise Interrupted(f"interrupted: {done} of {len(jobs)} done, and those are whole", signum) from None
        stopped = len(jobs) - done - len(failures)
        if len(jobs) > 1:
            watch.say(f"{done} done, {len(failures)} failed" + (f", {stopped} not started" if stopped else ""))
    codes = {error.exit_code if isinstance(error, DensekitError) else 1 for error in failures}
    if not failures:
        return 0
    return codes.pop() if len(codes) == 1 and not done else 1


@contextmanager
def writing(*outputs: Path) -> Iterator[None]:
    """Makes the folders of outputs, and tells a failure to write from one to read.

    Raises:
        DiskFull: no space is left.
        Unwritten: any other failure.
    """
    try:
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (ImageError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        is_full = isinstance(cause, OSError) and cause.errno in DISK_FULL
        raise (DiskFull if is_full else Unwritten)(describe(error)) from error


@contextmanager
def caught_warnings() -> Iterator[list[str]]:
    """Fills a list with the warnings that are given inside, one line each, instead of printing them."""
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lines
    lines += [printable(warning.message) for warning in caught]


def text_of(path: Path) -> str:
    """Returns a path as text that JSON can hold; bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _ours(error: Exception) -> Exception:
    if isinstance(error, MemoryError):  # from decoding, resizing or encoding: the network's own is handled by its tiles
        return DeviceError("does not fit the main memory; free some or cut the picture into parts")
    return error


def _report(watch: Watch, job: Job, finished: Done, as_json: bool) -> None:
    source = printable(job.source)
    for warning in finished.warnings:
        watch.say(f"warning: {source}: {warning}")
    watch.say(f"{source}  {finished.line}")
    if as_json:
        record = {"input": text_of(job.source), "output": text_of(finished.outputs[0]), "ok": True, **finished.record}
        watch.result(json.dumps({**record, "warnings": finished.warnings}, ensure_ascii=False, allow_nan=False))
    else:
        for output in finished.outputs:
            watch.result(output)


def _report_failure(watch: Watch, job: Job, error: Exception, as_json: bool) -> None:
    source, message = printable(job.source), describe(error)
    if not isinstance(error, Unwritten) and not message.startswith(f"{source}: "):
        message = f"{source}: {message}"
    watch.say(f"error: {message}")
    if as_json:
        record = {"input": text_of(job.source), "ok": False, "error": message, "kind": type(error).__name__}
        watch.result(json.dumps(record, ensure_ascii=False))

"""The folder of a run: who holds it, what it has logged, which states it keeps."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from densekit import ranks
from densekit.cards import Card
from densekit.checkpoint import save_model
from densekit.errors import CheckpointError, ConfigError
from densekit.files import atomic_write, naming, printable
from densekit.train.state import load_state, save_state
from densekit.train.trackers import Trackers


class Run:
    """`config.yaml`, `metrics.jsonl`, `checkpoints/`, `best.safetensors` and `last.safetensors` of one run.

    Args:
        folder: made if missing.
        keep: newest states that stay.

    Attributes:
        trackers: get what is logged, too.
        logged: the last step of each figure in the log, before `truncate_log`.
        seconds: that the parts of the run before this one took.

    Of several processes only rank 0 writes; to the others everything here but `load` does nothing.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.states: Path = folder / "checkpoints"
        self.keep = keep
        self.trackers: Trackers = Trackers()
        self.logged: dict[str, int] = {}
        self.seconds: float = 0.0
        self.writes: bool = ranks.rank() == 0
        try:
            self.states.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{printable(folder)}: cannot be made or written: {error.strerror}") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process alone.

        Raises:
            ConfigError: another process holds it, or it cannot be written.
        """
        if not self.writes:
            ranks.wait()  # until rank 0 holds it
            yield
            return
        for folder in (self.folder, self.states):
            if not os.access(folder, os.W_OK | os.X_OK):  # or the first save would tell, after hours
                raise ConfigError(f"{printable(folder)}: cannot be written: Permission denied; choose another --run")
        holder, pid = self.folder / ".holder", "unknown"
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with contextlib.suppress(OSError):  # it may end at this moment
                pid = printable(holder.read_text(errors="replace"))
            raise ConfigError(
                f"{printable(self.folder)} is in use by process {pid}; wait or choose another --run"
            ) from None
        except OSError as error:
            raise ConfigError(f"{printable(self.folder)}: cannot be written: {error.strerror}") from error
        try:
            holder.write_text(str(os.getpid()))
            for leftover in [*self.folder.glob(".*.tmp*"), *self.states.glob(".*.tmp*")]:
                leftover.unlink()  # of a process that was killed inside a write
            ranks.wait()
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def save(self, state: dict[str, Any]) -> None:
        """Writes the state of `state["step"]`; drops all but the newest `keep`, and damaged ones of later steps."""
        if not self.writes:
            return
        path = self.states / f"state-{state['step']:08d}.dk"
        save_state(path, state)
        paths = self._paths()
        end = paths.index(path) + 1
        for old in [*paths[: max(end - self.keep, 0)], *paths[end:]]:
            old.unlink()

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Returns the newest state that is whole, or None if there is none at all, and a line for each damaged one.

        Raises:
            CheckpointError: there are states, and every one is damaged.
        """
        warnings: list[str] = []
        for path in reversed(self._paths()):
            try:
                return load_state(path), warnings
            except CheckpointError as error:
                warnings.append(f"{error}; going back to the state before")
        if warnings:
            raise CheckpointError(f"{printable(self.states)}: no state in it is whole; start anew with another --run")
        return None, []

    def _paths(self) -> list[Path]:
        """Returns the states by step, of which names have eight digits or more."""
        return sorted(self.states.glob("state-*.dk"), key=lambda path: (len(path.name), path.name))

    def write_weights(self, net: nn.Module, card: Card, *, are_best: bool) -> None:
        """Writes `last.safetensors`, and the same bytes as `best.safetensors` where they are."""
        if not self.writes:
            return
        last = self.folder / "last.safetensors"
        save_model(last, net, card)
        if are_best:
            atomic_write(self.folder / "best.safetensors", last.read_bytes())

    def write_config(self, text: str) -> None:
        """Writes the resolved config."""
        if self.writes:
            atomic_write(self.folder / "config.yaml", text.encode())

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`, and hands it to the trackers."""
        if not self.writes:
            return
        path = self.folder / "metrics.jsonl"
        with naming(path), path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        self.trackers.log(record)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields what the log holds; lines that are torn are left out."""
        path = self.folder / "metrics.jsonl"
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    yield record

    def truncate_log(self, step: int) -> None:
        """Drops the records after `step`, and a last line torn by a kill: they will be written again."""
        path = self.folder / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        kept = []
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                self.logged |= dict.fromkeys(record, record["step"])
                if line.endswith("\n") and record["step"] <= step:
                    kept.append(line)
                    self.seconds = record.get("seconds", self.seconds)
        atomic_write(path, "".join(kept).encode())

"""Where the figures of a run go besides its own log: TensorBoard, Trackio, Weights & Biases.

None of them can hold a training up: one that fails is left out from then on, with a warning.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from densekit.config import Config
from densekit.errors import ConfigError
from densekit.files import atomic_write, printable
from densekit.train.progress import warn

if TYPE_CHECKING:
    from densekit.train.run import Run

Pictures = Mapping[str, NDArray[np.uint8]]
PROJECT = "densekit"


class Tracker(Protocol):
    """One of them."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes the figures of a step."""

    def show(self, step: int, pictures: Pictures) -> None:
        """Takes pictures by name, (H, W, 3) RGB."""

    def close(self) -> None:
        """Writes what is still held back."""


def check_trackers(names: Iterable[str]) -> None:
    """Passes trackers that are installed; nothing is imported.

    Raises:
        ConfigError: one that is not.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, such as W&B itself makes, is no package
            raise ConfigError(
                f"train.trackers: {name} is not installed; run: pip install 'densekit[{name}]', or leave it out"
            )


@contextlib.contextmanager
def tracked(run: Run, config: Config, start: int) -> Iterator[None]:
    """Opens the trackers that a config names, as `run.trackers`; they get every record that the run logs.

    Of several processes only the one that writes opens any.

    Args:
        run: its log begins at `start` already.
        config: of the run.
        start: steps already done.
    """
    for name in config.train.trackers if run.writes else ():
        run.trackers.open(name, run, config, start)
    try:
        yield
    finally:
        run.trackers.close()


class Trackers:
    """Those of a run that have not failed so far."""

    def __init__(self) -> None:
        self.working: dict[str, Tracker] = {}

    def open(self, name: str, run: Run, config: Config, start: int) -> None:
        """Opens one by its name."""
        with self._guarded(name):
            self.working[name] = KINDS[name](run, config, start)

    def log(self, record: Mapping[str, Any]) -> None:
        """Hands on a record of the log, as far as it is numbers."""
        figures = numbers(record)
        for name, tracker in list(self.working.items()) if figures else ():
            with self._guarded(name):
                tracker.log(record["step"], figures)

    def show(self, step: int, pictures: Pictures) -> None:
        """Hands on sample pictures."""
        for name, tracker in list(self.working.items()) if pictures else ():
            with self._guarded(name):
                tracker.show(step, pictures)

    def close(self) -> None:
        """Closes all of them."""
        for name, tracker in list(self.working.items()):
            with self._guarded(name):
                tracker.close()
        self.working.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Keeps stdout for results; makes any failure inside a warning, and leaves that tracker out from then on."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except (Exception, SystemExit) as error:  # each has kinds of its own; some may contact a host
            self.working.pop(name, None)
            reason = printable(error).split(r"\n")[0]
            warn(f"{name} failed and is left out: {type(error).__name__}: {reason}; metrics.jsonl has all figures")


class TensorBoard:
    """Event files in `tensorboard/` of the run; see them with `tensorboard --logdir RUN`."""

    def __init__(self, run: Run, config: Config, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        missed = [] if folder.exists() else run.records()
        # hides what an earlier part of the run wrote of later steps, which come again
        self.writer: Any = SummaryWriter(str(folder), purge_step=start + 1)
        self.writer.add_text("config", "    " + config.to_yaml().replace("\n", "\n    "), start)  # Markdown's code
        for record in missed:
            self.log(record["step"], numbers(record))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key, value, step)

    def show(self, step: int, pictures: Pictures) -> None:
        for name, pixels in pictures.items():
            self.writer.add_image(f"samples/{name}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A run in Trackio's own folder on this machine; see it with `trackio show --project densekit`.

    Nothing there can be taken back, so what it has got already is not sent again. A process that is killed, not
    interrupted, may lose the last half second there.
    """

    def __init__(self, run: Run, config: Config, start: int) -> None:
        import trackio

        self.module = trackio
        self.sent: dict[str, int]
        id, self.sent = known_there(run, "trackio")
        name = f"{run.folder.resolve().name}-{id}"  # by which it finds the run again
        self.run: Any = trackio.init(
            PROJECT,
            name=name,
            config=config.model_dump(mode="json"),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for record in run.records():  # for one that joins the run now
            self.log(record["step"], numbers(record))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        new = {key: value for key, value in figures.items() if step > self.sent.get(key, 0)}
        if new:
            self.run.log(new, step=step)

    def show(self, step: int, pictures: Pictures) -> None:
        if step >= max(self.sent.values(), default=0):
            shown = {f"samples/{name}": self.module.Image(pixels) for name, pixels in pictures.items()}
            self.run.log(shown, step=step)

    def close(self) -> None:
        self.module.finish()  # the run's own would be called again at exit, which prints on stdout


class Wandb:
    """A run of Weights & Biases in `wandb/` of the run, offline unless WANDB_MODE says otherwise.

    Each part of a run that is continued offline writes a file of its own there, with all from the first step on and one
    id for all of them: `wandb sync` the newest.
    """

    def __init__(self, run: Run, config: Config, start: int) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")  # before the import, which reports to its makers otherwise
        import wandb

        self.image: Any = wandb.Image
        id, _ = known_there(run, "wandb")
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.folder.resolve().name,
            id=id,
            dir=str(run.folder),
            config=config.model_dump(mode="json"),
            resume=None if os.environ["WANDB_MODE"] == "offline" else "allow",
            settings=wandb.Settings(console="off"),
        )
        self.first: Any = self.run.step  # that it has not got yet, of a run it knows; else 0
        for record in run.records():
            self.log(record["step"], numbers(record))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step >= self.first:
            self.run.log(dict(figures), step=step)

    def show(self, step: int, pictures: Pictures) -> None:
        if step >= self.first:
            self.run.log({f"samples/{name}": self.image(pixels) for name, pixels in pictures.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


def known_there(run: Run, name: str) -> tuple[str, dict[str, int]]:
    """Returns the id of a run at a tracker, the same in all its parts, and the last step it has got of each figure."""
    path = run.folder / f".{name}.json"
    try:
        known = json.loads(path.read_text())
        id, sent = str(known["id"]), {str(key): int(step) for key, step in known["sent"].items()}
        sent |= {key: max(step, sent.get(key, 0)) for key, step in run.logged.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # it joins the run now
        id, sent = secrets.token_hex(4), {}  # the operating system's randomness, not training's
    atomic_write(path, json.dumps({"id": id, "sent": sent}).encode())
    return id, sent


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns what can be drawn of a record."""
    return {key: value for key, value in record.items() if key != "step" and is_number(value)}


def is_number(value: object) -> bool:
    """Says whether a value of a record can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


KINDS: dict[str, Callable[[Run, Config, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}

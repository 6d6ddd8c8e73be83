"""What the evaluations of both tasks do alike."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from densekit.blocks.norms import batch_norms
from densekit.errors import CheckpointError, DataError, DeviceError
from densekit.files import printable
from densekit.report import Row
from densekit.runtimes.net import ExportedNet

if TYPE_CHECKING:
    from densekit.predict import Segmenter, Upscaler

BN_MODES = {
    "running": "averages from training",
    "recalibrated": "averages of one pass over pictures, densekit bn recalibrate",
    "batch": "of the very pictures that go through together, so that a result depends on its neighbours",
    "none": "the network has no batch norm",
}


class Follow(Protocol):
    """Who wants to know how an evaluation proceeds."""

    def start(self, paths: Sequence[Path], conditions: Mapping[str, str]) -> None:
        """These pictures will follow, under conditions that are known beforehand."""

    def begin(self, path: Path) -> None:
        """One is under way."""

    def tile(self, done: int, total: int) -> None:
        """So many pixels of it are computed."""

    def row(self, row: Row, tile: str) -> None:
        """It is finished; `tile` is "whole", a side in pixels, or empty without a model."""


class Silent:
    """A `Follow` that does nothing."""

    def start(self, paths: Sequence[Path], conditions: Mapping[str, str]) -> None: ...

    def begin(self, path: Path) -> None: ...

    def tile(self, done: int, total: int) -> None: ...

    def row(self, row: Row, tile: str) -> None: ...


def failed(path: Path, folder: Path, error: Exception) -> Row:
    """Returns the row of a picture that could not be scored; raises what is no picture's fault again.

    Raises:
        Exception: `error`, unless it is a picture's fault or a lack of memory for one.
    """
    if isinstance(error, MemoryError):
        error = DeviceError("does not fit the main memory; free some or cut the picture into parts")
    if not isinstance(error, DataError | DeviceError):
        raise error
    message, name = str(error), printable(path)
    return Row(name_of(path, folder), {}, message if message.startswith(f"{name}: ") else f"{name}: {message}")


def name_of(path: Path, folder: Path) -> str:
    """Returns a file's place in `folder` as text that JSON can hold; bytes that are no UTF-8 become escapes."""
    return os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")


def mean_of(rows: Iterable[Row], key: str) -> float | None:
    """Returns the mean over the pictures that have this figure, infinity included; None where none has."""
    values = [value for row in rows if (value := row.figures.get(key)) is not None and not math.isnan(value)]
    return float(np.mean(values)) if values else None


def count_of(rows: Sequence[Row]) -> str:
    """Returns how many pictures a figure stands for: "5 pictures" or "mean of 4 of 5 (1 failed)"."""
    bad = sum(bool(row.error) for row in rows)
    if bad:
        return f"mean of {len(rows) - bad} of {len(rows)} ({bad} failed)"
    return "1 picture" if len(rows) == 1 else f"{len(rows)} pictures"


def tiles_of(tiles: Iterable[str]) -> str:
    """Returns the tiles that were used, each once: "whole", "256" or "whole, 256"."""
    return ", ".join(dict.fromkeys(filter(None, tiles)))


def bn_mode_of(model: Upscaler | Segmenter) -> str:
    """Returns the statistics that a model's batch norms use: a key of `BN_MODES`.

    Raises:
        CheckpointError: a card that names none of them.
    """
    hides_norms = isinstance(model.net, ExportedNet) and model.card.task == "seg"
    if not hides_norms and not batch_norms(model.net):
        return "none"
    mode = model.card.bn_mode
    if mode not in BN_MODES:
        raise CheckpointError(f"bn_mode {printable(mode)!r} of its card: expected one of {', '.join(BN_MODES)}")
    return mode


def conditions_of(
    first: Mapping[str, str], model: Upscaler | Segmenter | None, given: Mapping[str, str], last: Mapping[str, str]
) -> dict[str, str]:
    """Returns conditions in the order to show: `first`, the model, `given`, `last`, the environment; empty ones out."""
    own: dict[str, str] = {}
    if model is not None:
        own = {"model": model.card.model, "device": str(model.device), "precision": model.precision}
    return {key: value for key, value in {**first, **own, **given, **last, **environment()}.items() if value}


def environment() -> dict[str, str]:
    """Returns the versions of what figures are made with."""
    import torch

    from densekit import __version__

    return {
        "densekit": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }

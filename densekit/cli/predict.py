"""What the predict commands of both tasks do alike."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densekit import __version__
from densekit.cards import card_from, digest_of, is_ours, read_bytes, split_header, verify_seal
from densekit.cli.batch import text_of
from densekit.cli.process import spoken
from densekit.errors import ConfigError, DeviceError
from densekit.files import printable
from densekit.image import MAX_PIXELS, Picture, read_image
from densekit.pretrained import RUNTIME_SUFFIXES, WEIGHTS, find_weights, trained_cards
from densekit.runtimes.reading import read_exported
from densekit.tiff import SUFFIXES as STREAMED

if TYPE_CHECKING:
    from densekit.predict import Segmenter, Upscaler

COPIES = 3  # of a result in memory: its own, what an encoder makes of it, and the file's bytes


@dataclass(frozen=True)
class Weights:
    """The file of a model, which is known to be whole if it is one of ours.

    Attributes:
        name: as in messages: an embedded model's name, a path or a hub id.
        path: the file.
        task: the task that it is to be for.
        sha256: its seal, or where others wrote it the digest of its bytes.
        is_sealed: whether densekit wrote it.
    """

    name: str
    path: Path
    task: str
    sha256: str
    is_sealed: bool

    def load(self, device: str, precision: str) -> Any:
        """Returns the `Upscaler` or `Segmenter`.

        Raises:
            ConfigError: a model for another task.
            CheckpointError, DeviceError: as `densekit.load`.
        """
        from densekit.predict import load

        with spoken():
            model = load(self.path, device=device, precision=precision)
        _check_task(model.card.task, self.task, self.name)
        return model

    def announce(self, model: Upscaler | Segmenter) -> None:
        """Prints on stderr what any report of a fault has to begin with."""
        import torch

        origin = "embedded" if self.path.parent == WEIGHTS else "file"
        seal = "sha256 ok" if self.is_sealed else f"sha256 {self.sha256[:8]}.., no seal"
        threads = f", {torch.get_num_threads()} threads" if model.device.type == "cpu" else ""
        click.echo(
            f"densekit {__version__}  {printable(self.name)} ({origin}, {seal})  "
            f"{model.device}{threads}, {model.precision}",
            err=True,
        )

    def record(self, model: Upscaler | Segmenter) -> dict[str, Any]:
        """Returns what every line of `--json` says about the model."""
        return {
            "model": text_of(Path(self.name)),
            "model_sha256": self.sha256,
            "device": str(model.device),
            "precision": model.precision,
        }


def find_model(name_or_path: str | None, task: str) -> Weights:
    """Returns the weights of a model of `task`; imports no torch.

    Raises:
        ConfigError: none given, no such model, or one of another task.
        CheckpointError: missing or damaged.
    """
    if name_or_path is None:
        raise ConfigError(f"{task} predict needs a model: -m NAME ({_names_for(task)}) or -m FILE.safetensors")
    with spoken():
        path = find_weights(name_or_path)
    source = printable(name_or_path)
    if path.suffix in RUNTIME_SUFFIXES:
        exported = read_exported(path)
        _check_task(exported.card.task, task, name_or_path)
        return Weights(name_or_path, path, task, exported.sha256, is_sealed=bool(exported.sha256))
    if not is_ours(path):
        return Weights(name_or_path, path, task, digest_of(path), is_sealed=False)
    data = read_bytes(path)
    start, description = split_header(data, source)
    sha256 = verify_seal(data, start, source)
    _check_task(card_from(description, source).task, task, name_or_path)
    return Weights(name_or_path, path, task, sha256, is_sealed=True)


def _check_task(found: str, task: str, name: str) -> None:
    if found != task:
        known = _names_for(task)
        raise ConfigError(
            f"{printable(name)}: a model of task {printable(found)}, not {task}; models of task {task}: {known}"
        )


def _names_for(task: str) -> str:
    return ", ".join(name for name, card in trained_cards().items() if card.task == task) or "none in this package"


def read_picture(path: Path, max_pixels: int | None, first_frame: bool) -> Picture:
    """Returns the picture in a file.

    Raises:
        ImageError: it cannot be read.
    """
    return read_image(path, max_pixels=max_pixels or MAX_PIXELS, first_frame=first_frame)


def check_fits(picture: Picture, scale: int, output: Path, *, compare: bool) -> bool:
    """Returns whether the result is written as it is made: a TIFF, whose picture nothing else needs.

    Raises:
        DeviceError: it is not, and does not fit the main memory.
    """
    if output.suffix.lower() in STREAMED and not compare:
        return True
    from densekit.memory import available_memory

    width, height = picture.width * scale, picture.height * scale
    num_samples = picture.pixels.shape[2] + (picture.alpha is not None)
    needed = COPIES * width * height * num_samples * picture.pixels.itemsize
    if needed > available_memory("cpu"):
        way = "leave out --compare" if output.suffix.lower() in STREAMED else "use -o NAME.tif, written as it is made"
        raise DeviceError(f"the {width}x{height} result needs {needed / 1e9:.3g} GB of memory; {way}")
    return False


def measures(picture: Picture, scale: int, tile: int | None, overlap: int, began: float) -> dict[str, Any]:
    """Returns what every line of `--json` says about the work: pixels (width, height), tile or null, and seconds.

    `began` is a reading of `time.monotonic`.
    """
    return {
        "size_in": [picture.width, picture.height],
        "size_out": [picture.width * scale, picture.height * scale],
        "tile": tile,
        "overlap": overlap if tile else 0,
        "seconds": round(time.monotonic() - began, 3),
    }


def describe_measures(record: dict[str, Any]) -> str:
    """Returns the same for people."""
    sizes = dict.fromkeys(f"{width}x{height}" for width, height in (record["size_in"], record["size_out"]))
    tiles = f"tile {record['tile']} + {record['overlap']}" if record["tile"] else "whole"
    return f"{' -> '.join(sizes)}  {tiles}  {record['seconds']:.1f} s"

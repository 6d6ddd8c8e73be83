"""Trained networks on real images: `load` one, then `predict`."""

from __future__ import annotations

from pathlib import Path

from densekit.errors import ConfigError
from densekit.files import printable
from densekit.predict.segment import Segmenter
from densekit.predict.upscale import Upscaler
from densekit.pretrained import open_model

__all__ = ["Segmenter", "Upscaler", "load"]


def load(name_or_path: str | Path, *, device: str = "auto", precision: str = "auto") -> Upscaler | Segmenter:
    """Returns a trained network that knows its task.

    Args:
        name_or_path: an embedded model (`densekit.list_models()`); a checkpoint, a foreign file that
            `densekit.dialects` reads, or an exported graph; a folder with one of them; or a hub id, "org/name" or
            "org/name@revision".
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16"; see `densekit.predict.device.choose_precision`.

    Raises:
        ConfigError: no such model, device or precision, or a model that neither upscales nor segments.
        CheckpointError: a file that is missing, damaged, unsafe, or of no network known here.
        DeviceError: a device that is not there.
    """
    net, card = open_model(name_or_path)
    if card.task == "sr":
        return Upscaler(net, card, device=device, precision=precision)
    if card.task == "seg":
        return Segmenter(net, card, device=device, precision=precision)
    raise ConfigError(
        f"{printable(name_or_path)}: {printable(card.model)} is for {printable(card.task)!r}; expected a model that "
        "upscales (sr) or segments (seg)"
    )

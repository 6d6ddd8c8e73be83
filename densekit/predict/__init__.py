"""Trained networks on real images: `load` one, then `predict`."""

from __future__ import annotations

from pathlib import Path

from densekit.checkpoint import load_model
from densekit.errors import ConfigError
from densekit.files import printable
from densekit.predict.segment import Segmenter
from densekit.predict.upscale import Upscaler
from densekit.pretrained import find_weights

__all__ = ["Segmenter", "Upscaler", "load"]


def load(name_or_path: str | Path, *, device: str = "auto", precision: str = "auto") -> Upscaler | Segmenter:
    """Returns a trained network that knows its task.

    Args:
        name_or_path: of an embedded model (`densekit.list_models()`) or a checkpoint.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16"; see `densekit.predict.device.choose_precision`.

    Raises:
        ConfigError: no such model, device or precision, or a model that neither upscales nor segments.
        CheckpointError: a file that is missing, damaged or foreign.
        DeviceError: a device that is not there.
    """
    net, card = load_model(find_weights(name_or_path))
    if card.task == "sr":
        return Upscaler(net, card, device=device, precision=precision)
    if card.task == "seg":
        return Segmenter(net, card, device=device, precision=precision)
    raise ConfigError(
        f"{printable(name_or_path)}: {printable(card.model)} is for {printable(card.task)!r}; expected a model that "
        "upscales (sr) or segments (seg)"
    )

"""Features of pictures, and the files that hold those of many."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from densekit.blocks import optimize
from densekit.encoders.opening import Found
from densekit.errors import CheckpointError, ConfigError, DeviceError, ImageError
from densekit.files import atomic_write, replacing
from densekit.image import Picture
from densekit.memory import activation_bytes_per_pixel, available_memory
from densekit.predict.inputs import luma, to_unit
from densekit.resize import imresize

POOLS = ("avg", "max", "none")
SUFFIXES = (".npz", ".safetensors")
Features = dict[str, NDArray[np.float32]]


class Extractor:
    """An encoder that turns pictures into features.

    Args:
        found: the encoder.
        taps: their numbers, ascending; None takes the deepest.
        pool: "avg" or "max" over the pixels of a map, or "none".
        size: (height, width) that pictures are resized to first; None takes them as they are.
        device: where it runs.

    Attributes:
        taps: as above.

    Raises:
        ConfigError: no such tap or pool, or an encoder for other images than grey or RGB.
    """

    def __init__(
        self,
        found: Found,
        *,
        taps: Sequence[int] | None = None,
        pool: str = "avg",
        size: tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if pool not in POOLS:
            raise ConfigError(f"pool={pool!r}: expected {', '.join(POOLS)}")
        self.channels: int = int(found.arguments.get("in_channels", 3))
        if self.channels not in (1, 3):
            raise ConfigError(f"{found.name} takes {self.channels} channels, but pictures have 1 or 3")
        self.taps: tuple[int, ...] = tuple(sorted(set(found.indices[-1:] if taps is None else taps)))
        encoder = found.encoder(self.taps).to(device).eval().requires_grad_(False)
        multiple_of: Any = encoder.multiple_of
        self.least: int = int(multiple_of)
        self.device: torch.device
        self.encoder: nn.Module
        self.encoder, self.device = optimize(encoder), torch.device(device)
        self.size: tuple[int, int] | None
        self.pool, self.size = pool, size

    @cached_property
    def bytes_per_pixel(self) -> float:
        """Peak of what is alive while features are computed, in bytes per pixel of the picture."""
        return activation_bytes_per_pixel(self.encoder, self.channels)

    def __call__(self, picture: Picture) -> Features:
        """Returns the features of a picture, "tap4" and so on: (C,) where they are pooled, else (C, h, w), float32.

        Alpha is ignored; grey becomes RGB and the other way round, as in prediction.

        Raises:
            ImageError: a picture that is too small.
            DeviceError: not enough memory.
            CheckpointError: the weights give values that are not finite.
        """
        pixels = picture.pixels if self.size is None else imresize(picture.pixels, None, size=self.size)
        height, width = pixels.shape[:2]
        if min(height, width) < self.least:
            raise ImageError(
                f"{width}x{height} pixels; the encoder needs {self.least}x{self.least} or more; use --size"
            )
        needed = self.bytes_per_pixel * height * width
        if needed > available_memory(self.device):
            raise DeviceError(f"features of {width}x{height} pixels need {needed / 1e9:.3g} GB of memory; use --size")
        x, _ = to_unit(pixels)
        if x.shape[1] != self.channels:
            x = luma(x) if self.channels == 1 else x.expand(-1, 3, -1, -1)
        try:
            with torch.inference_mode():
                maps: list[Tensor] = self.encoder(x.to(self.device).contiguous())
                features = {f"tap{tap}": self._pooled(y[0]).cpu() for tap, y in zip(self.taps, maps, strict=True)}
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"features of {width}x{height} pixels do not fit {self.device}; use --size") from error
        if not all(feature.isfinite().all() for feature in features.values()):
            raise CheckpointError("the weights give values that are not finite; use another checkpoint")
        return {name: feature.numpy() for name, feature in features.items()}

    def _pooled(self, y: Tensor) -> Tensor:
        return y if self.pool == "none" else y.mean((1, 2)) if self.pool == "avg" else y.amax((1, 2))


def stack(features: Sequence[Features]) -> Features:
    """Returns the features of several pictures in arrays whose first axis is the picture, in their order.

    Raises:
        ConfigError: their shapes differ.
    """
    stacked = {}
    for name in features[0]:
        shapes = {each[name].shape for each in features}
        if len(shapes) > 1:
            raise ConfigError(f"{name} has {len(shapes)} shapes, which do not fit into one array; use --size or --pool")
        stacked[name] = np.stack([each[name] for each in features])
    return stacked


def write_features(path: Path, features: Features, about: Mapping[str, Any]) -> None:
    """Writes arrays and what is to be known about them, whole or not at all; the same input gives the same bytes.

    Args:
        path: ends in .npz, where `about` is JSON text in the array "densekit", or .safetensors, where it is metadata.
        features: by name.
        about: JSON values.

    Raises:
        OSError: the folder cannot be written.
    """
    text = json.dumps(about, ensure_ascii=True, allow_nan=False)
    if path.suffix.lower() == ".npz":
        with replacing(path) as file:
            np.savez(file, **features, densekit=np.array(text))  # type: ignore[arg-type]
        return
    import safetensors.numpy

    arrays = {name: np.ascontiguousarray(array) for name, array in features.items()}
    atomic_write(path, safetensors.numpy.save(arrays, metadata={"densekit": text}))

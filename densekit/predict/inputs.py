"""What goes into a prediction and comes back out: paths, PIL images, arrays and tensors."""

from __future__ import annotations

import inspect
import os
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from densekit.cards import Card
from densekit.color import LUMA
from densekit.errors import ConfigError, ImageError
from densekit.image import Picture, read_image
from densekit.models import MODELS

Array: TypeAlias = NDArray[Any]
Given: TypeAlias = str | os.PathLike[str] | Image.Image | Array | Tensor

ROWS = 256  # of a result that are rounded at once
DTYPES = ("uint8", "uint16", "float32")


def to_picture(image: str | os.PathLike[str] | Image.Image | Array) -> Picture:
    """Returns the picture in a file, a PIL image or an array (H, W) or (H, W, C), C grey, grey + alpha, RGB or RGBA.

    A PIL image is taken as its pixels lie, without regard to an EXIF orientation; palettes and CMYK become RGB.

    Raises:
        ConfigError: something else.
        ImageError: a file that cannot be read, or an array of another shape or dtype, or not finite.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        samples = _samples(image)
    elif isinstance(image, np.ndarray):
        samples = image
    else:
        kind = type(image).__name__
        raise ConfigError(f"cannot predict on a {kind}; expected a path, a PIL image, a NumPy array or a tensor")
    shape, dtype = samples.shape, samples.dtype
    if len(shape) == 2:
        samples = samples[..., None]
    if len(shape) not in (2, 3) or 0 in shape or samples.shape[2] > 4:
        raise ImageError(f"an array of shape {shape}; expected (H, W) or (H, W, C) with 1 to 4 channels")
    if dtype.name not in DTYPES:
        raise ImageError(
            f"an array of {dtype}; expected uint8 0..255, uint16 0..65535 or float32 0..1; convert it first"
        )
    if dtype.kind == "f" and not np.isfinite(samples).all():
        raise ImageError("an array with NaN or infinite values; expected finite ones; replace them first")
    channels = samples.shape[2] - (samples.shape[2] % 2 == 0)
    alpha = None if channels == samples.shape[2] else samples[..., channels]
    return Picture(samples[..., :channels], alpha)


def to_kind_of(given: str | os.PathLike[str] | Image.Image | Array, picture: Picture) -> Image.Image | Array:
    """Returns a picture as what `given` was: a PIL image, or an array (H, W, C) of the picture's dtype.

    Alpha is the last channel. An array is (H, W) where `given` was.
    """
    samples = picture.pixels if picture.alpha is None else np.dstack((picture.pixels, picture.alpha))
    if isinstance(given, np.ndarray) and given.ndim == 2:
        return samples[..., 0]
    if not isinstance(given, Image.Image):
        return samples
    result = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    result.info = {key: given.info[key] for key in ("icc_profile", "exif") if key in given.info}
    return result


def to_batch(x: Tensor) -> Tensor:
    """Returns a tensor (C, H, W) or (B, C, H, W), C 1 or 3, as float32 (B, C, H, W).

    Raises:
        ImageError: another shape or dtype, or a value that is not finite.
    """
    shape = tuple(x.shape)
    if len(shape) not in (3, 4) or 0 in shape or shape[-3] not in (1, 3):
        raise ImageError(f"a tensor of shape {shape}; expected (C, H, W) or (B, C, H, W) with 1 or 3 channels")
    if not x.is_floating_point():
        raise ImageError(f"a tensor of {x.dtype}; expected float values in 0..1; divide by the largest value, 255")
    if not x.isfinite().all():
        raise ImageError("a tensor with NaN or infinite values; expected finite ones; replace them first")
    return x.detach().float().reshape(-1, *shape[-3:])


def peak_of(pixels: Array) -> float:
    """Returns the value that 1 stands for: 255 or 65535; for float pixels 1, or their largest value where above 1."""
    return float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else max(1.0, float(pixels.max()))


def to_unit(pixels: Array, peak: float | None = None) -> tuple[Tensor, float]:
    """Returns pixels (H, W, C) as float32 (1, C, H, W), and the value that 1 stands for, by default their `peak_of`."""
    peak = peak_of(pixels) if peak is None else peak
    x = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), np.float32, order="C"))  # a copy: it is divided in place
    return x.div_(peak)[None], peak


def from_unit(y: Tensor, dtype: np.dtype[Any], peak: float) -> Array:
    """Returns (1, C, H, W) as pixels (H, W, C): integers clamped and rounded half up, floats only multiplied."""
    y = y[0].permute(1, 2, 0)
    pixels = np.empty(tuple(y.shape), dtype)
    for top in range(0, len(y), ROWS):
        rows = y[top : top + ROWS] * peak
        if dtype.kind == "u":
            rows = rows.clamp_(0, peak).add_(0.5)
        pixels[top : top + ROWS] = rows.cpu().numpy()
    return pixels


def to_rgb8(pixels: Array) -> NDArray[np.uint8]:
    """Returns pixels (H, W, 1 or 3) of any depth as (H, W, 3) uint8, to look at."""
    if pixels.dtype != np.uint8:
        x, _ = to_unit(pixels)
        pixels = from_unit(x, np.dtype(np.uint8), 255.0)
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


def luma(x: Tensor) -> Tensor:
    """Returns the grey (B, 1, H, W) of RGB (B, 3, H, W) in the same range, by the weights of BT.601."""
    weights = torch.tensor(LUMA, device=x.device) / sum(LUMA)
    return torch.einsum("bchw,c->bhw", x, weights)[:, None]


def argument_of(net: nn.Module, card: Card, name: str) -> Any:
    """Returns the value that a constructor argument of a network has, given or by default; its own attribute wins."""
    if hasattr(net, name):
        return getattr(net, name)
    default = inspect.signature(type(net)).parameters[name].default
    return {name: default, **MODELS[card.model].arguments, **card.arguments}[name]


def in_channels(net: nn.Module, card: Card) -> int:
    """Returns the number of channels that a network takes: 1 or 3.

    Raises:
        ConfigError: another number.
    """
    channels = int(argument_of(net, card, "in_channels"))
    if channels not in (1, 3):
        raise ConfigError(f"{card.model} takes {channels} channels, pictures have 1 or 3; call its .net on tensors")
    return channels


def _samples(image: Image.Image) -> Array:
    mode = image.mode
    if mode in ("F", "I;16", "I;16L", "I;16B"):
        samples = np.array(image)
        return samples.astype(samples.dtype.newbyteorder("="), copy=False)
    if mode == "I":
        raise ImageError("a PIL image of mode I; expected 8 or 16 bits or float; convert it to I;16 or F")
    target = "L" if mode in ("1", "L", "LA", "La") else "RGB"
    return np.array(image.convert(f"{target}A" if image.has_transparency_data else target))

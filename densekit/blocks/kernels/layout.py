"""How maps lie in memory, and on what they are computed."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


def pixel_stride(x: Tensor) -> int:
    """Returns how many elements lie from one pixel of maps (B, C, H, W) to the next.

    Args:
        x: maps stored channels last, or the first or some of the channels of such maps.

    Raises:
        ValueError: they are stored otherwise.
    """
    (batch, channels, height, width), strides = x.shape, x.stride()
    # The stride along an axis of one element says nothing.
    step = strides[3] if width > 1 else strides[2] if height > 1 else strides[0] if batch > 1 else channels
    if (
        (channels > 1 and strides[1] != 1)
        or (height > 1 and strides[2] != width * step)
        or (batch > 1 and strides[0] != height * width * step)
    ):
        raise ValueError(
            f"maps of shape {tuple(x.shape)} and strides {strides}: the kernels read maps stored channels last; "
            "give them x.contiguous(memory_format=torch.channels_last)"
        )
    return step


def pixels(x: Tensor) -> Tensor:
    """Returns maps (B, C, H, W) as the matrix (B H W, C) of their pixels, a view.

    Raises:
        ValueError: they are not stored channels last.
    """
    batch, channels, height, width = x.shape
    return x.as_strided((batch * height * width, channels), (pixel_stride(x), 1))


def empty_maps(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Returns memory for maps (B, channels, H, W), channels last, as large as `like` and on its device."""
    shape = (like.shape[0], channels, *like.shape[2:])
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


@functools.cache
def has_triton() -> bool:
    """Says whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def has_tensor_cores(device: torch.device) -> bool:
    """Says whether a GPU is of a kind that Triton supports: compute capability 8.0 or above."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def is_for_kernels(x: Tensor, weight: Tensor) -> bool:
    """Says whether there are kernels for maps `x` and a convolution's `weight`: on a GPU, with Triton, no float64.

    Nor are there any for products in full float32, which tensor cores do not compute: those are bound by arithmetic,
    where a pass over memory less gains nothing, and they take the compiler minutes.
    """
    if torch.compiler.is_compiling() or not x.is_cuda or not x.numel():
        return False
    if not (has_triton() and has_tensor_cores(x.device)):
        return False
    halves = (torch.float16, torch.bfloat16)
    return x.dtype in (*halves, torch.float32) and (
        weight.dtype in halves or (weight.dtype == torch.float32 and precision() == "tf32")
    )


def precision() -> str:
    """Returns how float32 products are made: "tf32" where torch's own convolutions may round so, else "ieee"."""
    allowed = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if allowed == "tf32" else "ieee"


def power_of_two(number: int, least: int = 16, most: int = 128) -> int:
    """Returns the least power of two that is not below `number`, within bounds; no product is narrower than 16."""
    return max(least, min(most, 1 << (number - 1).bit_length()))


@functools.cache
def num_processors(device: torch.device) -> int:
    """Returns how many multiprocessors a GPU has; 2 for a CPU, where Triton interprets one program after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2

"""What the operators of torch can do on this CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

CHANNELS, SIDE, COUNT, ROWS = 64, 16, 4, 144  # of what is timed: 9 million products and 2, all of it in the caches
TURNS = 20
# MKL's products have 0.8 to 1.0 of the speed of oneDNN's convolutions with AVX2 and with AVX-512 units of 256 bits. On
# AMD's processors with units of 512 bits they have 0.4: there MKL keeps to AVX2.
LEAST_SHARE = 0.6


def uses_onednn(x: Tensor) -> bool:
    """Says whether torch's fused oneDNN operators run on such maps."""
    return x.device.type == "cpu" and x.dtype in onednn_types()


@cache
def onednn_types() -> tuple[torch.dtype, ...]:
    """Returns the types that the operators take on this CPU; none without them: they are not public in torch."""
    names = ["_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight"]
    names += ["_linear_pointwise", "_reorder_linear_weight"]
    is_there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (is_there and all(hasattr(torch.ops.mkldnn, name) for name in names)):
        return ()
    knows_bf16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)()
    return (torch.float32, torch.bfloat16) if knows_bf16 else (torch.float32,)


@cache
def has_fast_products() -> bool:
    """Says whether matrix products in float32 are about as fast as oneDNN's convolutions.

    That is measured once in a process, in hundredths of a second; rates are far enough apart for the answer to repeat.
    """
    if not (torch.backends.mkl.is_available() and onednn_types()):  # type: ignore[no-untyped-call]
        return False
    number = torch.get_num_threads()
    torch.set_num_threads(1)  # how several are woken is of no interest here
    try:
        with torch.inference_mode():
            product, convolution = shortest(product_of_matrices(), convolution_of_maps())
    finally:
        torch.set_num_threads(number)
    return COUNT * ROWS / product >= LEAST_SHARE * 9 * SIDE**2 / convolution


def product_of_matrices() -> Callable[[], Tensor]:
    """Returns what multiplies a batch of matrices."""
    windows = torch.ones(COUNT, ROWS, CHANNELS, device="cpu")
    matrices = torch.ones(COUNT, CHANNELS, CHANNELS, device="cpu")
    return lambda: torch.bmm(windows, matrices)


def convolution_of_maps() -> Callable[[], Tensor]:
    """Returns what convolves maps by oneDNN."""
    x = torch.ones(1, CHANNELS, SIDE, SIDE, device="cpu").contiguous(memory_format=torch.channels_last)
    geometry = [1, 1], [1, 1], [1, 1], 1
    weight = torch.ones(CHANNELS, CHANNELS, 3, 3, device="cpu")
    weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
    convolve = torch.ops.mkldnn._convolution_pointwise.default
    return lambda: convolve(x, weight, None, *geometry, "none", [], "")


def shortest(*runs: Callable[[], Tensor]) -> list[float]:
    """Returns the least seconds that each takes of many times in turn, after one that is not timed."""
    seconds = [math.inf] * len(runs)
    for turn in range(1 + TURNS):
        for i, run in enumerate(runs):
            began = time.perf_counter()
            run()
            if turn:
                seconds[i] = min(seconds[i], time.perf_counter() - began)
    return seconds

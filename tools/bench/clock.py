"""Times taken in turn, and the ceilings of the machine that stand beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Action = Callable[[], object]
Sample = tuple[float, float]  # seconds: of the processor (all threads) or the GPU, and on the wall

CONV_WIDTH, CONV_SIZE, CONV_REPEATS = 64, 256, 4
CONV_BATCH = {"cpu": 1, "cuda": 32}  # one picture does not fill a GPU
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}  # beyond the last cache


def interleave(actions: dict[str, Action], rounds: int, device: str = "cpu") -> dict[str, list[Sample]]:
    """Returns the samples of each action; all take their turn in every round, so that all see the same machine.

    Each round has another order: what an action finds in the caches depends on which one it follows.
    """
    order, draw = list(actions.items()), np.random.default_rng(0)
    measure = measure_gpu if device == "cuda" else measure_cpu
    samples: dict[str, list[Sample]] = {name: [] for name in actions}
    for _ in range(rounds):
        for index in draw.permutation(len(order)):
            name, action = order[index]
            samples[name].append(measure(action))
    return samples


def measure_cpu(action: Action) -> Sample:
    wall, busy = time.perf_counter(), time.process_time()
    action()
    return time.process_time() - busy, time.perf_counter() - wall


def measure_gpu(action: Action) -> Sample:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    wall = time.perf_counter()
    start.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, time.perf_counter() - wall


def middle(samples: Iterable[Sample]) -> float:
    """Returns the median of the busy seconds."""
    return statistics.median(busy for busy, _ in samples)


def conv_action(device: str, dtype: torch.dtype) -> tuple[Action, int]:
    """Returns 3x3 convolutions 64 -> 64 at 256x256 in channels_last, and their operations."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator)
        return x.to(device, dtype, memory_format=torch.channels_last)

    batch = CONV_BATCH[device]
    x, weight = draw(batch, CONV_WIDTH, CONV_SIZE, CONV_SIZE), draw(CONV_WIDTH, CONV_WIDTH, 3, 3)

    def convolve() -> None:
        for _ in range(CONV_REPEATS):
            F.conv2d(x, weight, padding=1)

    return convolve, CONV_REPEATS * 2 * batch * CONV_SIZE**2 * CONV_WIDTH**2 * 9


def copy_action(device: str) -> tuple[Action, int]:
    """Returns a copy between two buffers that no cache holds, and the bytes that it reads and writes."""
    source, target = (torch.ones(COPY_BYTES[device] // 4, device=device) for _ in range(2))
    return lambda: target.copy_(source), 2 * COPY_BYTES[device]

"""The channel statistics that a network subtracts and divides by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densekit.errors import ConfigError

NAMES = ("mean", "std")


def register_statistics(
    net: nn.Module, in_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Gives `net` the buffers `mean` and `std`, (1, C, 1, 1); none given means images go in as they are.

    They are constructor arguments, so the metadata of a checkpoint restores them and foreign weights load strictly.

    Raises:
        ConfigError: their number is not `in_channels`.
    """
    for name, values, default in zip(NAMES, (mean, std), (0.0, 1.0), strict=True):
        values = [default] * in_channels if values is None else list(values)
        if len(values) != in_channels:
            raise ConfigError(f"{name} has {len(values)} values: expected {in_channels}, one for each channel")
        net.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)


def standardized(net: nn.Module, x: Tensor) -> Tensor:
    """Returns images with the statistics of `net` subtracted and divided by, in the type of the images.

    Where the statistics are of a wider type, it is computed in that. Shapes: (B, C, H, W) -> the same.
    """
    mean, std = (net.get_buffer(name) for name in NAMES)
    return ((x - mean) / std).to(x.dtype)

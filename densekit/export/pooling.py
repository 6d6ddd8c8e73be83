"""Pooling to a fixed size, in operations that are right for every size of the image."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class PartMeans(nn.Module):
    """What `nn.AdaptiveAvgPool2d` gives, as two products with matrices of weights.

    The exporters unroll that pooling for the size it is traced with, and are wrong for others.

    Args:
        height, width: of the result.

    Shapes: (B, C, H, W) -> (B, C, height, width).
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height: int = height
        self.width: int = width

    def forward(self, x: Tensor) -> Tensor:
        return part_weights(self.height, x.shape[-2]) @ x @ part_weights(self.width, x.shape[-1]).T


def part_weights(parts: int, length: int) -> Tensor:
    """Returns (parts, length): each row averages one of so many parts of a side; they may overlap.

    Part i goes from floor(i length / parts) to ceil((i + 1) length / parts), as in torch.
    """
    part, place = torch.arange(parts)[:, None], torch.arange(length)
    start, end = part * length // parts, ((part + 1) * length + parts - 1) // parts
    return ((place >= start) & (place < end)).float() / (end - start)


def with_part_means(net: nn.Module) -> nn.Module:
    """Returns a copy of a network whose poolings to fixed sizes, other than 1, are `PartMeans`."""
    net = copy.deepcopy(net)
    for name, module in list(net.named_modules()):
        if not isinstance(module, nn.AdaptiveAvgPool2d):
            continue
        size = module.output_size
        height, width = size if isinstance(size, tuple) else (size, size)
        if height and width and (height, width) != (1, 1):
            net.set_submodule(name, PartMeans(height, width))
    return net

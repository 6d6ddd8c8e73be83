"""Networks ready for prediction in a type of fewer digits."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from densekit.blocks.inference.convs import PlannedConv
from densekit.blocks.inference.planned import Planned
from densekit.models.network import Network
from densekit.models.statistics import NAMES


def cast_for_prediction(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy of an optimised network in another type, but for what reads the images.

    That is their statistics and the first convolution: rounded, they would change all pixels alike, which was more
    than half of what FC-DenseNet lost by bfloat16, and they take hardly any time.
    """
    result = copy.deepcopy(net).to(dtype)
    for part, kept in zip(net.modules(), result.modules(), strict=True):
        if isinstance(part, Network):
            kept._buffers.update({name: part._buffers[name] for name in NAMES if name in part._buffers})
    first = next(first_convolutions(net), None)
    if first is not None:
        result.get_submodule(first)._buffers.update(net.get_submodule(first)._buffers)
    return result


def first_convolutions(module: nn.Module, name: str = "") -> Iterator[str]:
    """Yields the names of convolutions that are in no other planned part, in the order in which they were made."""
    if isinstance(module, PlannedConv):
        yield name
    elif not isinstance(module, Planned):
        for child_name, child in module.named_children():
            yield from first_convolutions(child, f"{name}.{child_name}".lstrip("."))

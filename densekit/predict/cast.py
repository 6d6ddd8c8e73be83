"""Networks ready for prediction in a type of fewer digits."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from densekit.blocks.inference.convs import NarrowConv, PlannedConv
from densekit.blocks.inference.planned import Planned
from densekit.models.network import Network
from densekit.models.statistics import NAMES


def cast_for_prediction(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy of an optimised network in another type, but for what reads the images and what makes the result.

    The first is their statistics and the first convolution, the second the last convolution of a network:
    rounded, they would change all pixels alike, and they take hardly any time. Images that go in with all their digits
    keep them (`cast_images`), and the result has them.
    """
    result = copy.deepcopy(net).to(dtype)
    for part, kept in zip(net.modules(), result.modules(), strict=True):
        if isinstance(part, Network):
            kept._buffers.update({name: part._buffers[name] for name in NAMES if name in part._buffers})
    names = list(convolutions(net))
    if isinstance(net, Network) and net.output_name:
        for name in [name for name in names if f"{name}.".startswith(f"{net.output_name}.")][-1:]:
            keep(net, result, name)
    for name in names[:1]:
        keep(net, result, name)
        result.get_submodule(name).gives = dtype  # type: ignore[assignment]
    return result


def cast_images(net: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns images in the type in which a network that was cast to `dtype` reads them: ours as they are."""
    return x if isinstance(net, Network) else x.to(dtype)


def keep(net: nn.Module, cast: nn.Module, name: str) -> None:
    """Gives a part of a network that was cast the constants that it had."""
    for part, kept in zip(net.get_submodule(name).modules(), cast.get_submodule(name).modules(), strict=True):
        kept._buffers.update(part._buffers)


def convolutions(module: nn.Module, name: str = "") -> Iterator[str]:
    """Yields the names of convolutions that are in no other planned part, in the order in which they were made."""
    if isinstance(module, PlannedConv | NarrowConv):
        yield name
    elif not isinstance(module, Planned):
        for child_name, child in module.named_children():
            yield from convolutions(child, f"{name}.{child_name}".lstrip("."))

"""What a network costs, counted without computing: tensors on the meta device have a shape and no memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from densekit.blocks import MEMORY_POLICIES
from densekit.blocks.budget import Ledger
from densekit.memory import activation_bytes_per_pixel


def parameters(net: nn.Module) -> int:
    """Returns the number of weights that training changes."""
    return sum(parameter.numel() for parameter in net.parameters())


def macs(net: nn.Module, shape: Sequence[int]) -> int:
    """Returns the multiplications with an addition in convolutions and matrix products, as papers count them.

    Args:
        net: on any device; it stays as it is.
        shape: of the batch, (B, C, H, W).
    """
    from torch.utils.flop_counter import FlopCounterMode

    net = on_meta(net)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # they count for nothing, and take two thirds of the time
        norm.forward = _same  # type: ignore[assignment, method-assign]
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(tuple(shape), device="meta"))
    finally:
        for norm in norms:
            del norm.forward
    return int(counter.get_total_flops()) // 2  # an addition counts there, too


def forward_bytes(net: nn.Module, shape: Sequence[int]) -> int:
    """Returns the most bytes of activations that are alive at once in a prediction, the batch itself included.

    It is the peak for a small picture, in proportion to the pixels.
    """
    batch, channels, height, width = shape
    return round(activation_bytes_per_pixel(on_meta(net), channels) * batch * height * width)


def training_bytes(
    net: nn.Module, shape: Sequence[int], policies: Iterable[str] = tuple(MEMORY_POLICIES)
) -> dict[str, int]:
    """Returns the bytes of activations that a training step keeps for its backward pass, by memory policy.

    A network without parts that have a policy keeps the same under any, so that it has "speed" alone.

    Args:
        net: on any device; it stays as it is.
        shape: of the batch, (B, C, H, W).
        policies: which of `MEMORY_POLICIES`.
    """
    ledger = Ledger(on_meta(net), tuple(shape), torch.float32)
    return {policy: ledger.total(ledger.all_at(policy)) for policy in (policies if ledger.parts else ("speed",))}


def on_meta(net: nn.Module) -> nn.Module:
    """Returns a network as it predicts, whose tensors have no memory: itself where that is so already."""
    if all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
        return net.eval()
    return copy.deepcopy(net).to("meta").eval()


def _same(x: Tensor) -> Tensor:
    return x

"""What lies between two dense blocks, of which only the input is kept for the backward pass.

A norm, a ReLU and what follows them make maps that cost little to make again. The norm's input is the buffer of the
block before, which that block keeps anyway. Running statistics move in the forward pass alone, by torch's own kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densekit.blocks.parts import (
    STATISTICS,
    autocast_dtype,
    has_hooks,
    is_plain,
    learns,
    measure,
    norm_backward,
    random_state,
    rectify,
    replayed,
    update_running,
)
from densekit.blocks.second import Again, is_second_asked_for, rectified
from densekit.blocks.synced import group_of

Tail = Callable[[Tensor], Tensor]


class Recomputed(torch.autograd.Function):
    """(norm, tail, whether it is tapped, x, parameters of both) -> relu(norm(x)) if tapped, and tail(relu(norm(x)))."""

    @staticmethod
    def forward(
        ctx: Any, norm: nn.BatchNorm2d, tail: Tail, is_tapped: bool, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        y, *stats = activate(norm, x)
        ctx.state, ctx.autocast = random_state(x.device), autocast_dtype(x.device)
        with autocast_again(x.device, ctx.autocast):
            made = tail(y)
        ctx.save_for_backward(x, *stats)
        ctx.norm, ctx.tail, ctx.parameters = norm, tail, parameters
        return y if is_tapped else None, made

    @staticmethod
    def backward(ctx: Any, grad_tap: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *stats = ctx.saved_tensors
        if is_second_asked_for():
            again = Again(partial(Recomputed.again, ctx), [x], [x], ctx.parameters)
            return None, None, None, *again.gradients(grad_tap, grad)
        y = rectify(ctx.norm, x, stats)
        gradients: dict[int, Tensor | None] = {}
        if grad is not None:
            learned = [parameter for parameter in ctx.parameters[2:] if parameter.requires_grad]
            with torch.enable_grad(), replayed(ctx.state, x.device), autocast_again(x.device, ctx.autocast):
                leaf = y.detach().requires_grad_()
                made = ctx.tail(leaf)
            dy, *found = torch.autograd.grad(made, [leaf, *learned], grad)
            gradients = dict(zip(map(id, learned), found, strict=True))
            grad_tap = dy if grad_tap is None else grad_tap + dy
        if grad_tap is None:
            return (None,) * (4 + len(ctx.parameters))
        dz = torch.ops.aten.threshold_backward(grad_tap.to(y.dtype), y, 0)
        dx, *own = norm_backward(ctx.norm, dz, x, stats)
        gradients |= dict(zip(map(id, ctx.parameters[:2]), own, strict=True))
        return None, None, None, dx, *(gradients.get(id(p)) if p.requires_grad else None for p in ctx.parameters)

    @staticmethod
    def again(ctx: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns relu(norm(x)) and what the tail makes of it, as the forward pass did."""
        y = rectified(ctx.norm, inputs[0])
        with replayed(ctx.state, y.device), autocast_again(y.device, ctx.autocast):
            return y, ctx.tail(y)


def recompute(
    norm: nn.BatchNorm2d, tail: Tail, modules: Sequence[nn.Module], x: Tensor, *, is_tapped: bool = False
) -> tuple[Tensor, Tensor] | None:
    """Returns relu(norm(x)) and what `tail` makes of it, of which the first counts only where it is tapped.

    Args:
        norm: what reads `x`.
        tail: what follows norm and ReLU.
        modules: those that `tail` runs, with the ReLU.
        x: (B, c, H, W).
        is_tapped: whether someone else reads relu(norm(x)) as well.

    Returns None where it is to be run as it is: nothing to learn, export, hooks, another kind of norm.
    """
    parameters = [norm.weight, norm.bias, *(p for module in modules for p in module.parameters())]
    if not is_plain(norm) or any(map(has_hooks, [norm, *modules])) or not learns(x, *parameters):
        return None
    result: tuple[Tensor, Tensor] = Recomputed.apply(norm, tail, is_tapped, x, *parameters)
    return result


def activate(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, ...]:
    """Returns relu(norm(x)), and the batch's statistics as `norm_backward` takes them.

    Running statistics are moved as the norm does.
    """
    group = group_of(norm)
    if group is not None:
        wide = torch.promote_types(x.dtype, torch.float32)
        stats = torch.zeros((STATISTICS, x.shape[1]), dtype=wide, device=x.device)
        measure(x, norm.eps, stats, group)
        update_running(norm, stats)
        return rectify(norm, x, stats), *stats
    share = 0.0
    if norm.training and norm.track_running_stats:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    is_used = norm.track_running_stats or not norm.training
    running = (norm.running_mean, norm.running_var) if is_used else (None, None)
    y, *found = torch.native_batch_norm(x, norm.weight, norm.bias, *running, norm.training, share, norm.eps)
    return y.relu_(), *found


@contextlib.contextmanager
def autocast_again(device: torch.device, dtype: torch.dtype | None) -> Any:
    """Lets autocast be as it was; without its cache, which would hand out weights that were cast without a gradient."""
    if device.type == "meta":
        yield
        return
    with torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False):
        yield

"""A dense block that keeps each feature map once: forward and backward by hand.

Concatenation keeps the input of every layer, O(L L) maps; here one buffer holds every map once, O(L), layers write
their own slice, and what is cheap is computed again for the backward pass. The batch statistics of a map are the same
for every layer that reads it, so they are taken once, when it is made. Results are those of the plain block, and so are
the running statistics, on CPUs bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densekit.blocks.parts import Stage, measure, update_running


@dataclass
class Plan:
    """How a block is run.

    Attributes:
        layers: the stages of each; the first stage of a layer reads the maps before it.
        in_channels, growth_rate: of the block.
        eps: of the norms that read its maps, None where none uses batch statistics.
        keep: whether what lies between two stages of a layer is kept for the backward pass.
        autocast: the type in which convolutions compute, None for their own.
    """

    layers: Sequence[Sequence[Stage]]
    in_channels: int
    growth_rate: int
    eps: float | None
    keep: bool
    autocast: torch.dtype | None

    def conv(self, stage: Stage, x: Tensor) -> Tensor:
        """Returns the stage's convolution of `x`."""
        weight, bias = stage.conv.weight, stage.conv.bias
        dtype = self.autocast or weight.dtype
        return stage.conv._conv_forward(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


class SharedBuffer(torch.autograd.Function):
    """The block as one operation: (x, plan, parameters of its layers) -> (B, out_channels, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, *parameters: Tensor) -> Tensor:
        end, growth = plan.in_channels, plan.growth_rate
        shape = (x.shape[0], end + growth * len(plan.layers), *x.shape[2:])
        dtype = x.dtype if plan.autocast is None else torch.promote_types(x.dtype, plan.autocast)
        data = torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout_of(x))
        wide = torch.promote_types(dtype, torch.float32)
        stats = torch.zeros((3, shape[1]), dtype=wide, device=x.device)
        data[:, :end] = x
        if plan.eps is not None:
            measure(x, plan.eps, stats[:, :end])
        kept: list[Tensor] = []
        notes: list[list[Any]] = []
        for first, *others in plan.layers:
            u = plan.conv(first, first.rectified(data[:, :end], stats[:, :end]))
            if first.is_measured and first.norm is not None:
                update_running(first.norm, stats[:, :end])
            u, state = first.activated(u)
            note: list[Any] = [(None, state)]
            for stage in others:
                own = torch.zeros((3, u.shape[1]), dtype=wide, device=x.device)
                if stage.is_measured and stage.norm is not None:
                    measure(u, stage.norm.eps, own)
                    update_running(stage.norm, own)
                if plan.keep:
                    kept.append(u)
                u, state = stage.activated(plan.conv(stage, stage.rectified(u, own)))
                note.append((own, state))
            notes.append(note)
            data[:, end : end + growth] = u
            if plan.eps is not None:
                measure(u, plan.eps, stats[:, end : end + growth])
            end += growth
        ctx.save_for_backward(data, stats, *kept)
        ctx.plan, ctx.notes, ctx.parameters = plan, notes, parameters
        return data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a second derivative through a dense block that keeps each map once; set memory='speed' "
                "(densekit.blocks.set_memory), which autograd can follow"
            )
        data, stats, *kept = ctx.saved_tensors
        flow = Flow(ctx.plan, data, stats, grad)
        for index in reversed(range(len(ctx.plan.layers))):
            between = kept[-len(ctx.plan.layers[index]) + 1 :] if ctx.plan.keep and kept else []
            del kept[len(kept) - len(between) :]
            flow.through(index, between, ctx.notes[index])
        gradients = [flow.gradients.get(id(parameter)) for parameter in ctx.parameters]
        return flow.grad[:, : ctx.plan.in_channels], None, *gradients


class Flow:
    """The gradient on its way back through a block.

    Args:
        plan: of the forward pass.
        data: the buffer.
        stats: of its maps.
        grad: of the buffer.
    """

    def __init__(self, plan: Plan, data: Tensor, stats: Tensor, grad: Tensor) -> None:
        self.plan, self.data, self.stats = plan, data, stats
        self.grad = torch.empty_like(data).copy_(grad)
        self.gradients: dict[int, Tensor | None] = {}

    def through(self, index: int, between: Sequence[Tensor], note: Sequence[Any]) -> None:
        """Passes a layer.

        Args:
            index: of the layer; those behind it must have been passed.
            between: what lies between its stages, if it was kept.
            note: for each stage its own statistics and the random state of its dropout.
        """
        stages, growth = self.plan.layers[index], self.plan.growth_rate
        start = self.plan.in_channels + index * growth
        prefix = self.data[:, :start].contiguous(memory_format=layout_of(self.data))
        inputs, rectified = [prefix], [stages[0].rectified(prefix, self.stats[:, :start])]
        for number, stage in enumerate(stages[1:], start=1):
            if between:
                inputs.append(between[number - 1])
            else:
                inputs.append(self.again(stages[number - 1], rectified[-1], note[number - 1][1]))
            rectified.append(stage.rectified(inputs[-1], note[number][0]))
        made = self.data[:, start : start + growth]
        grad = self.grad[:, start : start + growth]
        for number in reversed(range(len(stages))):
            own, state = note[number]
            grad = stages[number].activated_backward(grad, made, state)
            statistics = self.stats[:, :start] if own is None else own
            grad = self.stage_backward(stages[number], grad, inputs.pop(), rectified.pop(), statistics)
        self.grad[:, :start] += grad

    def again(self, stage: Stage, y: Tensor, state: Tensor | None) -> Tensor:
        """Returns what a stage made of its rectified input, with the numbers that it drew."""
        u = self.plan.conv(stage, y)
        return u if state is None else stage.activated_backward(u, u, state)  # dropout is its own gradient

    def stage_backward(self, stage: Stage, grad: Tensor, x: Tensor, y: Tensor, stats: Tensor) -> Tensor:
        """Returns the gradient of a stage's input, and notes those of its parameters.

        Args:
            stage: as in the plan.
            grad: of what its convolution made.
            x: its input.
            y: what its convolution read.
            stats: of its input.
        """
        conv, norm = stage.conv, stage.norm
        dtype = self.plan.autocast or conv.weight.dtype
        dy, dw, db = torch.ops.aten.convolution_backward(
            grad.to(dtype), y.to(dtype), conv.weight.to(dtype), None if conv.bias is None else [conv.out_channels],
            conv.stride, conv.padding, conv.dilation, False, [0], conv.groups, [True, True, conv.bias is not None],
        )  # fmt: skip
        self.note(conv.weight, dw)
        if conv.bias is not None:
            self.note(conv.bias, db)
        if norm is None:
            return dy
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            torch.ops.aten.threshold_backward(dy.to(y.dtype), y, 0), x, norm.weight, norm.running_mean,
            norm.running_var, stats[0], stats[1], norm.training, norm.eps, [True, True, True],
        )  # fmt: skip
        self.note(norm.weight, dgamma)
        self.note(norm.bias, dbeta)
        return dx

    def note(self, parameter: Tensor, gradient: Tensor) -> None:
        self.gradients[id(parameter)] = gradient.to(parameter.dtype) if parameter.requires_grad else None


def layout_of(x: Tensor) -> torch.memory_format:
    """Returns channels_last for maps that are stored so and could not be taken for contiguous ones."""
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format

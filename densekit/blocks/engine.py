"""A dense block that keeps each feature map once: forward and backward by hand.

Concatenation keeps the input of every layer, O(L L) maps; here one buffer holds every map once, O(L), layers write
their own slice, and what is cheap is computed again for the backward pass. The batch statistics of a map are the same
for every layer that reads it, so they are taken once, when it is made. Results are those of the plain block, and so are
the running statistics, on CPUs bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from densekit.blocks.parts import (
    STATISTICS,
    Stage,
    measure,
    norm_backward,
    rectify,
    relu_backward_,
    statistics_of,
    taken_away,
    update_running,
)
from densekit.blocks.second import Again, concatenated, is_second_asked_for
from densekit.blocks.synced import Group, added_up, group_of

PART = 2**25  # bytes of maps that a backward pass computes again at once, where it can choose


@dataclass
class Plan:
    """How a block is run.

    Attributes:
        anchors: of the tensors that together are the block's input.
        only_new: whether the result is the layers' maps alone.
        layers: the stages of each; the first stage of a layer reads the maps before it.
        in_channels, growth_rate: of the block.
        eps: of the norms that read its maps, None where none uses batch statistics.
        group: of processes that share the batch statistics of these maps, None where each has its own.
        keep: whether what lies between two stages of a layer is kept for the backward pass.
        autocast: the type in which convolutions compute, None for their own.
    """

    anchors: Sequence[Tensor]
    only_new: bool
    layers: Sequence[Sequence[Stage]]
    in_channels: int
    growth_rate: int
    eps: float | None
    group: Group | None
    keep: bool
    autocast: torch.dtype | None

    @property
    def read(self) -> int:
        """How many channels are read by a layer: all but what the last one makes."""
        return self.in_channels + self.growth_rate * max(0, len(self.layers) - 1)

    def buffer(self, inputs: Sequence[Tensor], made: Tensor | None = None) -> Tensor:
        """Returns a place for all maps of the block that holds the inputs already, and what the layers `made`."""
        channels = self.in_channels + self.growth_rate * len(self.layers)
        dtypes = [x.dtype for x in inputs] + ([] if self.autocast is None else [self.autocast])
        is_last = any(layout_of(x) is torch.channels_last for x in inputs)
        data = torch.empty(
            (inputs[0].shape[0], channels, *inputs[0].shape[2:]),
            dtype=reduce(torch.promote_types, dtypes),
            device=inputs[0].device,
            memory_format=torch.channels_last if is_last else torch.contiguous_format,
        )
        end = 0
        for x in inputs if made is None else (*inputs, made):
            data[:, end : end + x.shape[1]] = x
            end += x.shape[1]
        return data

    def conv(self, stage: Stage, x: Tensor) -> Tensor:
        """Returns the stage's convolution of `x`."""
        weight, bias = stage.conv.weight, stage.conv.bias
        dtype = self.autocast or weight.dtype
        return stage.conv._conv_forward(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


class SharedBuffer(torch.autograd.Function):
    """The block as one operation: (plan, its inputs, parameters of its layers) -> (B, out_channels, H, W).

    Where only the new maps are asked for, these are kept and references to the inputs, which others keep as well: the
    input of a block on the way up is the buffer of one on the way down.
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor) -> Tensor:
        inputs, parameters = tensors[: len(plan.anchors)], tensors[len(plan.anchors) :]
        device, end, growth = inputs[0].device, plan.in_channels, plan.growth_rate
        widths = [x.shape[1] for x in inputs]
        data = plan.buffer(inputs)
        wide = torch.promote_types(data.dtype, torch.float32)
        stats = torch.zeros((STATISTICS, plan.read), dtype=wide, device=device)
        if plan.eps is not None:
            for x, part in zip(inputs, stats[:, :end].split_with_sizes(widths, dim=1), strict=True):
                measure(x.contiguous(memory_format=layout_of(data)), plan.eps, part, plan.group)
        kept: list[Tensor] = []
        notes: list[list[Any]] = []
        for first, *others in plan.layers:
            u = plan.conv(first, first.rectified(data[:, :end], stats[:, :end]))
            if first.is_measured and first.norm is not None:
                update_running(first.norm, stats[:, :end])
            u, state = first.activated(u)
            note: list[Any] = [(None, state)]
            for stage in others:
                own = torch.zeros((STATISTICS, u.shape[1]), dtype=wide, device=device)
                if stage.is_measured and stage.norm is not None:
                    measure(u, stage.norm.eps, own, group_of(stage.norm))
                    update_running(stage.norm, own)
                if plan.keep:
                    kept.append(u)
                u, state = stage.activated(plan.conv(stage, stage.rectified(u, own)))
                note.append((own, state))
            notes.append(note)
            data[:, end : end + growth] = u
            if plan.eps is not None and end < plan.read:
                measure(u, plan.eps, stats[:, end : end + growth], plan.group)
            end += growth
        ctx.plan, ctx.widths, ctx.notes, ctx.parameters = plan, widths, notes, parameters
        if not plan.only_new:
            ctx.save_for_backward(data, stats, *kept)
            return data
        made = data[:, plan.in_channels :].clone(memory_format=layout_of(data))
        ctx.save_for_backward(*inputs, made, stats, *kept)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        count = len(plan.anchors) if plan.only_new else 0
        inputs, (data, stats, *kept) = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if is_second_asked_for():
            states = [[state for _, state in note] for note in ctx.notes]
            parts = inputs or data.detach()[:, : plan.in_channels].split_with_sizes(ctx.widths, dim=1)
            again = Again(
                lambda x: [concatenated(x, plan.layers, states, plan.conv, only_new=plan.only_new)],
                parts, inputs or plan.anchors, ctx.parameters,
            )  # fmt: skip
            return None, *again.gradients(grad)
        if plan.only_new:
            data = plan.buffer(inputs, data)
        flow = Flow(plan, data, stats, grad)
        for index in reversed(range(len(ctx.plan.layers))):
            between = kept[-len(ctx.plan.layers[index]) + 1 :] if ctx.plan.keep and kept else []
            del kept[len(kept) - len(between) :]
            flow.through(index, between, ctx.notes[index])
        gradients = [flow.gradients.get(id(parameter)) for parameter in ctx.parameters]
        return None, *flow.grad_of_inputs(ctx.widths), *gradients


class Flow:
    """The gradient on its way back through a block.

    Args:
        plan: of the forward pass.
        data: the buffer.
        stats: of its maps.
        grad: of the buffer, or of its new maps.
    """

    def __init__(self, plan: Plan, data: Tensor, stats: Tensor, grad: Tensor) -> None:
        self.plan: Plan = plan
        self.data: Tensor = data
        self.stats: Tensor = stats
        self.grad: Tensor = torch.zeros_like(data) if plan.only_new else torch.empty_like(data)
        self.grad[:, data.shape[1] - grad.shape[1] :] = grad
        # Of what is to be taken away: gradients of biases, and of weights.
        self.sums: Tensor = torch.zeros_like(stats[:2])
        self.gradients: dict[int, Tensor | None] = {}

    def grad_of_inputs(self, widths: Sequence[int]) -> list[Tensor]:
        """Returns the gradients of the block's inputs, once all layers are passed.

        Several go different ways. Each has memory of its own then, so that none holds the whole until it is used.
        """
        parts = self.settled(0, self.plan.in_channels).split_with_sizes(list(widths), dim=1)
        return [part.clone() for part in parts] if len(parts) > 1 else list(parts)

    def through(self, index: int, between: Sequence[Tensor], note: Sequence[Any]) -> None:
        """Passes a layer.

        Args:
            index: of the layer; those behind it must have been passed.
            between: what lies between its stages, if it was kept.
            note: for each stage its own statistics and the random state of its dropout.
        """
        stages, growth = self.plan.layers[index], self.plan.growth_rate
        start = self.plan.in_channels + index * growth
        first, *others = stages
        y = first.rectified(self.maps(slice(start)), self.stats[:, :start]) if others and not between else None
        inputs, rectified = [], [] if y is None else [y]
        for number, stage in enumerate(others, start=1):
            if between:
                inputs.append(between[number - 1])
            else:
                inputs.append(self.again(stages[number - 1], rectified[-1], note[number - 1][1]))
            rectified.append(stage.rectified(inputs[-1], note[number][0]))
        grad, made = self.settled(start, start + growth), self.data[:, start : start + growth]
        for number in range(len(others), 0, -1):
            stage, (own, state), z = stages[number], note[number], rectified.pop()
            grad = stage.activated_backward(grad, made, state)
            grad, dw, db = self.conv_backward(stage.conv, grad, z)
            self.note(stage.conv.weight, dw)
            self.note(stage.conv.bias, db)
            if stage.norm is not None:
                grad, dgamma, dbeta = norm_backward(stage.norm, relu_backward_(grad, z), inputs.pop(), own)
                self.note(stage.norm.weight, dgamma)
                self.note(stage.norm.bias, dbeta)
        self.spread(first, first.activated_backward(grad, made, note[0][1]), start, y)

    def spread(self, stage: Stage, grad: Tensor, end: int, y: Tensor | None) -> None:
        """Passes the first stage of a layer, but for what a norm's batch statistics take away from the gradient.

        That is its mean and its projection on the map. The gradients of bias and weight are these already, but for
        factors, so they are added up here and subtracted once from each map, not once for each layer that reads it.
        Large maps go some channels at a time, so that little is there at once.

        Args:
            stage: the first of its layer.
            grad: of what its convolution made.
            end: channels of the buffer that it read.
            y: what its convolution read, if it is at hand.
        """
        conv, norm = stage.conv, stage.norm
        step = end if y is not None or conv.groups > 1 else max(64, PART // self.data[:, :1].nbytes)
        weights, biases, gammas, betas = [], [], [], []
        for begin in range(0, end, step):
            part = slice(begin, min(begin + step, end))
            x = self.maps(part)
            z = y if y is not None else x if norm is None else rectify(norm, x, self.stats, part)
            dz, dw, db = self.conv_backward(conv, grad, z, part)
            weights.append(dw)
            biases.append(db)
            if norm is None:
                self.grad[:, part] += dz
                continue
            dz = relu_backward_(dz, z)
            _, dgamma, dbeta = norm_backward(norm, dz, x, self.stats, part, to_input=False)
            gammas.append(dgamma)
            betas.append(dbeta)
            factor = norm.weight[part] * statistics_of(norm, self.stats, part)[1]
            self.grad[:, part].addcmul_(dz, factor.view(1, -1, 1, 1))
            if norm.training:
                self.sums[:, part] += norm.weight[part] * torch.stack([dbeta, dgamma])
        self.note(conv.weight, torch.cat(weights, dim=1))
        self.note(conv.bias, biases[0])
        if norm is not None:
            self.note(norm.weight, torch.cat(gammas))
            self.note(norm.bias, torch.cat(betas))

    def maps(self, part: slice) -> Tensor:
        """Returns these channels of the buffer, without gaps between them."""
        return self.data[:, part].contiguous(memory_format=layout_of(self.data))

    def settled(self, start: int, end: int) -> Tensor:
        """Returns the gradient of these maps, all of whose readers are passed."""
        grad = self.grad[:, start:end]
        if self.plan.eps is None or start >= self.plan.read:
            return grad
        sums = added_up(self.sums[:, start:end], self.plan.group)
        return taken_away(self.data[:, start:end], self.stats[:, start:end], sums).add_(grad).to(grad.dtype)

    def again(self, stage: Stage, y: Tensor, state: Tensor | None) -> Tensor:
        """Returns what a stage made of its rectified input, with the numbers that it drew."""
        u = self.plan.conv(stage, y)
        return u if state is None else stage.activated_backward(u, u, state)  # dropout is its own gradient

    def conv_backward(
        self, conv: nn.Conv2d, grad: Tensor, y: Tensor, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the gradients of what a convolution read, `y`, those of its weights for it, and that of its bias.

        Args:
            conv: as in the plan.
            grad: of what it made.
            y: the channels of its input in `part`.
            part: of its input.
        """
        dtype = self.plan.autocast or conv.weight.dtype
        weight = conv.weight if y.shape[1] == conv.in_channels else conv.weight[:, part]
        found: tuple[Tensor, Tensor, Tensor | None] = torch.ops.aten.convolution_backward(
            grad.to(dtype), y.to(dtype), weight.to(dtype), None if conv.bias is None else [conv.out_channels],
            conv.stride, conv.padding, conv.dilation, False, [0], conv.groups, [True, True, conv.bias is not None],
        )  # fmt: skip
        return found

    def note(self, parameter: Tensor | None, gradient: Tensor | None) -> None:
        if parameter is not None and gradient is not None and parameter.requires_grad:
            self.gradients[id(parameter)] = gradient.to(parameter.dtype)


def layout_of(x: Tensor) -> torch.memory_format:
    """Returns channels_last for maps that are stored so and could not be taken for contiguous ones."""
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format

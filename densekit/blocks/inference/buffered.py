"""Dense blocks for prediction whose layers begin with a norm and a ReLU, as in DenseNet and FC-DenseNet.

Every layer reads all maps before it with a norm of its own, so all are read and written anew for each layer anyway.
They lie in one buffer, channels last, and each layer writes its own slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densekit.blocks.dense import DenseBlock
from densekit.blocks.inference.convs import PlannedConv, Way
from densekit.blocks.inference.planned import Packed, Planned, affine, is_affine, per_map
from densekit.blocks.kernels import bottleneck_forward
from densekit.blocks.layers import BasicLayer, BottleneckLayer

Onto = Callable[[Tensor, Tensor], Tensor]
Run = Callable[[Tensor, Tensor, Tensor], None]


class Fill(NamedTuple):
    """What a layer does to a block's buffer.

    `run(buffer, made, room)` fills `made`, the layer's slice of the buffer. `size` is how many numbers the room has at
    the least, which is a layer's for as long as it runs.
    """

    run: Run
    size: int


class Rectified(Packed):
    """relu(norm(x)) and the zeros around it, in one pass as a clamp, before a convolution that takes the rest over.

    For a > 0, relu(a x + b) = a max(x, -b / a) + b; for a < 0, a min(x, -b / a) + b. The convolution takes over a and
    b. The zeros that it pads with are a (-b / a) + b: so the border here is -b / a, and the convolution adds no other.

    Args:
        norm: in evaluation.
        conv: what follows.
    """

    low: Tensor
    high: Tensor
    edge: Tensor

    def __init__(self, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
        super().__init__()
        a, b = affine(norm)
        edge = (-b / a).to(conv.weight.dtype).double()
        constant = ~edge.isfinite()  # a is nothing, or so little that relu(b) is all there is: ones, and a border of 0
        self.scale: Tensor = torch.where(constant, b.clamp(min=0), a)
        self.shift: Tensor = torch.where(constant, 0.0, b)
        low = torch.where(constant, 1.0, torch.where(a > 0, edge, -torch.inf))
        high = torch.where(constant, 1.0, torch.where(a < 0, edge, torch.inf))
        self.register_buffer("low", per_map(low, conv.weight))
        self.register_buffer("high", per_map(high, conv.weight))
        self.register_buffer("edge", per_map(torch.where(constant, 0.0, edge), conv.weight))
        self.border: tuple[int, int] = (int(conv.padding[0]), int(conv.padding[1]))

    def reader(self, conv: nn.Conv2d, *, norm: nn.BatchNorm2d | None = None, slope: float | None = None) -> PlannedConv:
        """Returns what reads the clamped maps and their border as `conv` the others; the rest as in `PlannedConv`."""
        weight = conv.weight.detach().double()
        bias = (weight * self.shift.view(1, -1, 1, 1)).sum((1, 2, 3))
        if conv.bias is not None:
            bias = bias + conv.bias.detach().double()
        weight = weight * self.scale.view(1, -1, 1, 1)
        return PlannedConv(weight, bias, conv, norm=norm, slope=slope, is_padded=True)

    def shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """Returns the shape of what is made of such maps."""
        (batch, channels, height, width), (down, right) = x.shape, self.border
        return batch, channels, height + 2 * down, width + 2 * right

    def onto(self, x: Tensor) -> Onto:
        """Returns what clamps such maps into room for them, which is one row of numbers, and returns them."""
        (batch, channels, height, width), (down, right) = self.shape(x), self.border
        picture, row = height * width * channels, width * channels
        strides = picture, 1, row, channels
        whole = (batch, channels, height, width), strides
        inside = tuple(x.shape), strides, down * row + right * channels
        # Both ends of a border are one view: each view is a call of torch, which maps of few pixels feel.
        ends = [((batch, channels, 2, down, width), (picture, 1, (height - down) * row, row, channels))] if down else []
        if right:
            ends.append(((batch, channels, 2, height, right), (picture, 1, row - right * channels, row, channels)))
        clamp, edge = self.clamp(x.dtype), self.edge[..., None]

        def run(x: Tensor, room: Tensor) -> Tensor:
            maps = room.as_strided(*whole)
            clamp(x, room.as_strided(*inside) if ends else maps)
            for end in ends:
                room.as_strided(*end).copy_(edge)
            return maps

        return run

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(x, self.onto)(x, x.new_empty(math.prod(self.shape(x))))

    def clamp(self, dtype: torch.dtype) -> Onto:
        """Returns the fastest way to clamp maps of that type; it writes to its second argument."""
        low, high = self.low, self.high
        if bool((high == torch.inf).all()):
            return lambda x, out: torch.maximum(x, low, out=out)
        if dtype != torch.bfloat16:
            return lambda x, out: torch.clamp(x, low, high, out=out)
        # In bfloat16 a clamp between tensors takes 1.1 times as long as these two, and 3.8 times where maps are large.
        return lambda x, out: torch.minimum(torch.maximum(x, low, out=out), high, out=out)


class PlannedLayer(Planned):
    """A layer that reads the maps before it in a block's buffer and writes its own behind them."""

    def __init__(self, activation: Rectified, *convs: PlannedConv) -> None:
        super().__init__()
        self.activation: Rectified = activation
        self.convs: nn.ModuleList = nn.ModuleList(convs)

    def fill(self, maps: Tensor) -> Fill:
        """Returns what it does to a buffer that begins with such maps, which it reads."""
        layout = tuple(maps.shape), maps.stride()
        activate, shape = self.activation.onto(maps), self.activation.shape(maps)
        read, ways = maps.new_empty(1).expand(shape), list[Way]()
        for conv in self.convs:
            assert isinstance(conv, PlannedConv)
            ways.append(conv.way(read))
            read = maps[:, :1].expand(-1, len(conv.bias), -1, -1)

        def run(buffer: Tensor, made: Tensor, room: Tensor) -> None:
            maps = activate(buffer.as_strided(*layout), room)
            for way in ways:
                maps = way(maps)
            made.copy_(maps)

        return Fill(run, math.prod(shape))


class KernelLayer(Planned):
    """A bottleneck layer by the kernels for GPUs, where they are faster than torch's operators."""

    weight1: Tensor
    weight2: Tensor

    def __init__(self, layer: BottleneckLayer) -> None:
        super().__init__()
        scale, shift = affine(layer.norm2)
        # In float32 whatever type the network is cast to: the kernels compute the norms so.
        self.vectors: list[Tensor] = [vector.float().contiguous() for vector in (*affine(layer.norm1), shift)]
        weight = layer.conv1.weight.detach()
        self.register_buffer("weight1", (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype))
        self.register_buffer("weight2", layer.conv2.weight.detach().contiguous(memory_format=torch.channels_last))
        self.dilation: int = int(layer.conv2.dilation[0])

    def fill(self, maps: Tensor) -> Fill:
        """Returns what it does to a buffer that begins with such maps, which it reads."""
        (a, b, bias), weight1, weight2, dilation = self.vectors, self.weight1, self.weight2, self.dilation
        end = maps.shape[1]

        def run(buffer: Tensor, made: Tensor, room: Tensor) -> None:
            bottleneck_forward(buffer, end, a, b, weight1, bias, weight2, dilation, made)

        return Fill(run, 0)


def planned_layer(layer: nn.Module) -> PlannedLayer | KernelLayer | None:
    """Returns the planned form of a layer that begins with a norm; None for another kind of layer or norm."""
    if type(layer) is BottleneckLayer and is_affine(layer.norm1) and is_affine(layer.norm2):
        if layer.conv1.weight.is_cuda:
            return KernelLayer(layer)
        activation = Rectified(layer.norm1, layer.conv1)
        reduce = activation.reader(layer.conv1, norm=layer.norm2, slope=0.0)
        return PlannedLayer(activation, reduce, PlannedConv.of(layer.conv2))
    if type(layer) is BasicLayer and is_affine(layer.norm1):
        activation = Rectified(layer.norm1, layer.conv1)
        return PlannedLayer(activation, activation.reader(layer.conv1))
    return None


class BufferedBlock(Packed):
    """A dense block of layers that begin with a norm: one buffer, slices written in place.

    Shapes: as the block's.
    """

    def __init__(self, block: DenseBlock, layers: Sequence[PlannedLayer | KernelLayer]) -> None:
        super().__init__()
        self.in_channels: int = block.in_channels
        self.out_channels: int = block.out_channels
        self.growth_rate: int = block.growth_rate
        self.layers: nn.ModuleList = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor, only_new: bool = False) -> Tensor:
        x = inputs[0]
        shape = (x.shape[0], self.out_channels, *x.shape[2:])
        buffer = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        first, *slices = buffer.split_with_sizes([self.in_channels, *[self.growth_rate] * len(self.layers)], dim=1)
        torch.cat(inputs, dim=1, out=first)
        fills, size = self.packed(buffer, self.fills)
        # One for all layers: what glibc's allocator gives for large ones is new memory, page by page, each time.
        room = x.new_empty(size)
        # No module is called here: in a DenseNet-121 the calls alone were a quarter of the time at 32x32.
        for fill, made in zip(fills, slices, strict=True):
            fill(buffer, made, room)
        return buffer[:, self.in_channels :] if only_new else buffer

    def fills(self, buffer: Tensor) -> tuple[list[Run], int]:
        """Returns what each layer does to such a buffer, and the numbers that the room for all of them has."""
        ends = range(self.in_channels, self.out_channels, self.growth_rate)
        layers = [layer for layer in self.layers if isinstance(layer, PlannedLayer | KernelLayer)]
        fills = [layer.fill(buffer[:, :end]) for layer, end in zip(layers, ends, strict=True)]
        return [fill.run for fill in fills], max((fill.size for fill in fills), default=0)

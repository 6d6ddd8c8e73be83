"""Dense blocks for prediction.

Where a norm and a ReLU precede the convolution, as in DenseNet and FC-DenseNet, every layer reads all maps anyway: they
lie in one buffer, channels last, and each layer writes its own slice. Where the activation follows the convolution, as
in RDN, RRDBNet and SRDenseNet, nothing is put together at all: a convolution of many maps is the sum of the
convolutions of the parts they came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from densekit.blocks.dense import DenseBlock
from densekit.blocks.inference.convs import PlannedConv, Way
from densekit.blocks.inference.planned import Packed, Planned, affine, is_affine, per_map
from densekit.blocks.inference.winograd import Kernels, WinogradChain, gain_of, is_chain_faster, without_border
from densekit.blocks.kernels import bottleneck_forward
from densekit.blocks.layers import BasicLayer, BottleneckLayer, ConvLayer
from densekit.blocks.residual import ResidualDenseBlock

Into = Callable[[Tensor, int, Tensor], None]
Onto = Callable[[Tensor, Tensor], Tensor]


class Rectified(Planned):
    """relu(norm(x)), in one pass as a clamp where a 1x1 convolution follows, which takes the rest over.

    For a > 0, relu(a x + b) = a max(x, -b / a) + b; for a < 0, a min(x, -b / a) + b. Only a 1x1 convolution can take
    a and b over: a larger one pads with the zeros of what follows the ReLU.

    Args:
        norm: in evaluation.
        like: of the type of the maps.
    """

    low: Tensor
    high: Tensor

    def __init__(self, norm: nn.BatchNorm2d, like: Tensor) -> None:
        super().__init__()
        a, b = affine(norm)
        edge = (-b / a).to(like.dtype).double()
        constant = ~edge.isfinite()  # a is nothing, or so little that relu(b) is all there is
        self.scale: Tensor = torch.where(constant, 0.0, a)
        self.shift: Tensor = torch.where(constant, b.clamp(min=0), b)
        low = torch.where(constant, 0.0, torch.where(a > 0, edge, -torch.inf))
        high = torch.where(constant, 0.0, torch.where(a < 0, edge, torch.inf))
        self.register_buffer("low", per_map(low, like))
        self.register_buffer("high", per_map(high, like))

    def onto(self) -> Onto:
        """Returns what writes it to `out` and returns that."""
        low, high = self.low, self.high
        return lambda x, out: torch.clamp(x, low, high, out=out)

    def taken_over_by(self, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Returns weight and bias of the 1x1 convolution that reads the clamped maps as `conv` reads the others."""
        weight = conv.weight.detach().double()
        bias = (weight * self.shift.view(1, -1, 1, 1)).sum((1, 2, 3))
        if conv.bias is not None:
            bias = bias + conv.bias.detach().double()
        return weight * self.scale.view(1, -1, 1, 1), bias


class Activated(Planned):
    """relu(norm(x)), for convolutions of any size."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale, shift = affine(norm)
        like = norm.running_mean
        assert like is not None
        self.register_buffer("scale", per_map(scale, like))
        self.register_buffer("shift", per_map(shift, like))

    def onto(self) -> Onto:
        """Returns what writes it to `out` and returns that."""
        scale, shift = self.scale, self.shift
        return lambda x, out: torch.addcmul(shift, x, scale, out=out).relu_()

    def forward(self, x: Tensor) -> Tensor:
        return self.onto()(x, torch.empty_like(x))


class PlannedLayer(Planned):
    """A layer that reads the maps before it in a block's buffer and writes its own behind them."""

    def __init__(self, activation: Rectified | Activated, *convs: PlannedConv) -> None:
        super().__init__()
        self.activation: Rectified | Activated = activation
        self.convs: nn.ModuleList = nn.ModuleList(convs)

    def into(self, maps: Tensor) -> Into:
        """Returns what fills the channels of a buffer behind the first ones, which it reads.

        The third argument of what is returned is room for as many numbers as it reads.

        Args:
            maps: of the shape and type of those it reads.
        """
        activate, shape = self.activation.onto(), maps.permute(0, 2, 3, 1).shape
        ways: list[Way] = []
        for conv in self.convs:
            assert isinstance(conv, PlannedConv)
            ways.append(conv.way(maps))
            maps = maps[:, :1].expand(-1, len(conv.bias), -1, -1)

        def run(buffer: Tensor, end: int, room: Tensor) -> None:
            maps = activate(buffer[:, :end], room[: shape.numel()].view(shape).permute(0, 3, 1, 2))
            for way in ways:
                maps = way(maps)
            buffer[:, end : end + maps.shape[1]] = maps

        return run


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

    def into(self, maps: Tensor) -> Into:
        """Returns what fills the channels of a buffer behind the first ones, which it reads, as `PlannedLayer.into`."""
        (a, b, bias), weight1, weight2, dilation = self.vectors, self.weight1, self.weight2, self.dilation

        def run(buffer: Tensor, end: int, room: Tensor) -> None:
            made = buffer[:, end : end + len(weight2)]
            bottleneck_forward(buffer, end, a, b, weight1, bias, weight2, dilation, made)

        return run


def planned_layer(layer: nn.Module) -> PlannedLayer | KernelLayer | None:
    """Returns the planned form of a layer that begins with a norm; None for another kind of layer or norm."""
    if type(layer) is BottleneckLayer and is_affine(layer.norm1) and is_affine(layer.norm2):
        if layer.conv1.weight.is_cuda:
            return KernelLayer(layer)
        rectified = Rectified(layer.norm1, layer.conv1.weight)
        weight, bias = rectified.taken_over_by(layer.conv1)
        reduce = PlannedConv(weight, bias, layer.conv1, norm=layer.norm2, slope=0.0)
        return PlannedLayer(rectified, reduce, PlannedConv.of(layer.conv2))
    if type(layer) is BasicLayer and is_affine(layer.norm1):
        return PlannedLayer(Activated(layer.norm1), PlannedConv.of(layer.conv1))
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
        self.needs_room: bool = any(isinstance(layer, PlannedLayer) for layer in layers)

    def forward(self, *inputs: Tensor, only_new: bool = False) -> Tensor:
        x = inputs[0]
        shape = (x.shape[0], self.out_channels, *x.shape[2:])
        buffer = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        torch.cat(inputs, dim=1, out=buffer[:, : self.in_channels])
        # One for all layers: what glibc's allocator gives for large ones is new memory, page by page, each time.
        room = x.new_empty(buffer[:, : -self.growth_rate].numel() if self.needs_room else 0)
        # No module is called here: in a DenseNet-121 the calls alone were a quarter of the time at 32x32.
        for end, fill in zip(self.ends(), self.packed(buffer, self.fills), strict=True):
            fill(buffer, end, room)
        return buffer[:, self.in_channels :] if only_new else buffer

    def ends(self) -> range:
        """Returns how many channels each layer reads."""
        return range(self.in_channels, self.out_channels, self.growth_rate)

    def fills(self, buffer: Tensor) -> list[Into]:
        """Returns what each layer does to such a buffer."""
        layers = [layer for layer in self.layers if isinstance(layer, PlannedLayer | KernelLayer)]
        return [layer.into(buffer[:, :end]) for layer, end in zip(layers, self.ends(), strict=True)]


class SplitConv(PlannedConv):
    """A convolution of maps that may come in parts, as the sum of its parts.

    Args:
        conv: of all maps.
        sizes: channels of each part.
        slope: as in `PlannedConv`.
        scale: factor on the result, before the activation.
    """

    def __init__(
        self, conv: nn.Conv2d, sizes: Sequence[int], *, slope: float | None = None, scale: float = 1.0
    ) -> None:
        bias = None if conv.bias is None else conv.bias.detach() * scale
        super().__init__(conv.weight.detach() * scale, bias, conv, slope=slope)
        self.sizes: list[int] = list(sizes)

    def add_up(self, inputs: Sequence[Tensor], total: Tensor | None = None) -> Tensor:
        """Returns the convolution of the parts, added to `total`, in place, if there is one."""
        for part, x in zip(self.common("parts", self._parts), inputs, strict=True):
            total = part(x) if total is None else part.add_to(total, x)
        assert total is not None
        return total

    def weights(self) -> tuple[Tensor, ...]:
        """Returns the weights of the parts."""
        return torch.split(self.weight, self.sizes, dim=1)

    def _parts(self) -> list[PlannedConv]:
        last = len(self.sizes) - 1
        return [
            PlannedConv(weight, None if i else self.bias, self, slope=self.slope if i == last else None, is_part=True)
            for i, weight in enumerate(self.weights())
        ]


class SplitBlock(Packed):
    """A dense block of convolutions followed by a ReLU, whose maps are never put together between its layers.

    Shapes: as the block's.
    """

    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        self.in_channels: int = block.in_channels
        self.growth_rate: int = block.growth_rate
        self.layers: nn.ModuleList = nn.ModuleList(
            SplitConv(layer.conv, self.sizes(i), slope=layer.stages()[0].slope)
            for i, layer in enumerate(conv_layers(block))
        )

    def sizes(self, number: int) -> list[int]:
        """Returns the channels of the parts that layer `number` reads."""
        return [self.in_channels, *[self.growth_rate] * number]

    def parts(self, x: Tensor) -> list[Tensor]:
        """Returns the block's input and what each layer makes."""
        features = [x]
        for layer in self.layers:
            assert isinstance(layer, SplitConv)
            features.append(layer.add_up(features))
        return features

    def links(self) -> list[SplitConv]:
        """Returns the convolutions that can run as a chain."""
        return [conv for conv in self.layers if isinstance(conv, SplitConv)]

    @cached_property
    def gain(self) -> float:
        """What `gain_of` says of the chain; 0 where Winograd's algorithm is not for its convolutions."""
        chain = self.links()
        if not all(conv.is_plain_3x3 for conv in chain):
            return 0.0
        widths = [len(conv.bias) for conv in chain]
        return gain_of([self.in_channels, *widths[:-1]], widths)

    def chained(self, x: Tensor) -> Tensor | None:
        """Returns the input and what each one of the chain gives, with a border; None where plain sums are faster."""
        if not is_chain_faster(x, self.gain):
            return None
        chain = self.common("chain", self._chain)
        return chain(x)

    def _chain(self) -> WinogradChain:
        return WinogradChain([Kernels(conv.weights(), conv.bias, conv.slope) for conv in self.links()])

    def forward(self, *inputs: Tensor, only_new: bool = False) -> Tensor:
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)
        maps = self.chained(x)
        if maps is None:
            return torch.cat(self.parts(x)[only_new:], dim=1)
        return without_border(maps, x)[:, self.in_channels if only_new else 0 :]


class SplitResidual(SplitBlock):
    """A residual dense block whose maps are never put together; the fusion adds to the input.

    Shapes: as the block's.
    """

    def __init__(self, block: ResidualDenseBlock) -> None:
        super().__init__(block.dense)
        self.fusion: SplitConv = SplitConv(block.fusion, self.sizes(len(self.layers)), scale=block.residual_scale)

    def links(self) -> list[SplitConv]:
        return [*super().links(), self.fusion] if self.fusion.is_plain_3x3 else super().links()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        maps = self.chained(x)
        if maps is None:
            return self.fusion.add_up(self.parts(x), x.clone(memory_format=torch.channels_last))
        maps = maps[:, -x.shape[1] :] if self.fusion.is_plain_3x3 else self.fusion(maps)
        return without_border(maps, x) + x


def conv_layers(block: DenseBlock) -> Iterator[ConvLayer]:
    """Yields the layers of a block that are convolutions with a ReLU behind, and stops at another kind."""
    for layer in block.children():
        if type(layer) is not ConvLayer or not layer.stages():
            return
        yield layer


def can_split(block: DenseBlock) -> bool:
    """Says whether `SplitBlock` and `SplitResidual` know the layers of a block."""
    return len(list(conv_layers(block))) == len(list(block.children()))

"""Dense blocks for prediction whose layers end with the activation, as in RDN, RRDBNet and SRDenseNet.

Large maps are not put together: a convolution of many maps is the sum of the convolutions of the parts they came in,
but for sums of many parts in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from densekit.blocks.dense import DenseBlock
from densekit.blocks.inference.convs import PlannedConv
from densekit.blocks.inference.planned import Packed
from densekit.blocks.inference.winograd import Kernels, WinogradChain, gain_of, is_chain_faster, without_border
from densekit.blocks.layers import ConvLayer
from densekit.blocks.residual import ResidualDenseBlock

# Parts; in bfloat16 a sum is rounded with each. Of an RDN's blocks of eight layers one convolution of more is off by
# 0.020 of the result's deviation, not 0.031, in the same time; of blocks of four it would take 1.06 times as long.
MANY = 5
TOGETHER = 2 << 20  # bytes; so few that maps put together stay in the caches take less time as one convolution


class SplitConv(PlannedConv):
    """A convolution of maps that may come in parts, as the sum of its parts or, where that is better, of them together.

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
        """Returns the convolution of the parts, added to `total`, in place, if there is one.

        Shapes: parts (B, C of each, H, W), total and result as the convolution's.
        """
        is_coarse = inputs[0].dtype == torch.bfloat16 and len(inputs) > MANY
        if is_coarse or sum(x.nbytes for x in inputs) <= TOGETHER:
            x = torch.cat(list(inputs), dim=1) if len(inputs) > 1 else inputs[0]
            return self(x) if total is None else self.add_to(total, x)
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
    """A dense block of convolutions followed by a ReLU, each a `SplitConv` or all of them a chain.

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
    """A residual dense block of such layers; the fusion, a `SplitConv` as well, adds to the input.

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

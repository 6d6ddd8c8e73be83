"""SRDenseNet: dense blocks, densely connected, and transposed convolutions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks import ConvLayer, DenseBlock, init_he_normal_, radius
from densekit.blocks.layers import layer_radii
from densekit.blocks.upsample import shuffle_stages
from densekit.errors import ConfigError
from densekit.models.network import Network
from densekit.tiling import Demand, Tiles


class SRDenseBlock(nn.Module):
    """The dense block of SRDenseNet: only its first convolution sees the block's input.

    Shapes: (B, in_channels, H, W) -> (B, num_layers growth_rate, H, W), its new maps only.
    """

    def __init__(self, in_channels: int, num_layers: int, growth_rate: int) -> None:
        super().__init__()
        self.first: ConvLayer = ConvLayer(in_channels, growth_rate)
        self.dense: DenseBlock = DenseBlock(
            growth_rate, num_layers - 1, growth_rate, lambda channels: ConvLayer(channels, growth_rate)
        )
        self.radius: int = self.first.radius + sum(layer_radii(self.dense))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.first(x))


class SRDenseNet(Network):
    """SRDenseNet, variant "All": every block sees the low-level features and the outputs of all blocks before it.

    The network of the paper is the default, with the biases of yjn870/SRDenseNet-pytorch (2,659,585 parameters);
    `deconv_size=2, bottleneck_activation=False, tail_bias=False` is twtygqyy/pytorch-SRDenseNet (2,003,456).

    Args:
        scale: 2, 3, 4 or 8: transposed convolutions of stride 2, or one of stride 3.
        in_channels: of the images; 1 for the luma channel Y, as in the paper.
        out_channels: of the images; as many as go in if None.
        num_features: maps of the first convolution.
        num_blocks: dense blocks.
        num_layers: convolutions of a dense block.
        growth_rate: maps each of them adds.
        bottleneck_features: maps that all those are reduced to before they are enlarged.
        bottleneck_activation: whether a ReLU follows that 1x1 convolution.
        deconv_size: kernel of the transposed convolutions, at least their stride.
        tail_bias: whether bottleneck, transposed convolutions and reconstruction have biases.

    Shapes: (B, in_channels, H, W) in 0..1 -> (B, out_channels, scale H, scale W), not clamped.

    Raises:
        ConfigError: an unknown scale, or a kernel that leaves gaps.

    Source: Tong et al., Image Super-Resolution Using Dense Skip Connections (ICCV 2017).
    """

    output_name = "reconstruction"
    multiple_of = 1

    def __init__(
        self,
        scale: int = 4,
        *,
        in_channels: int = 1,
        out_channels: int | None = None,
        num_features: int = 128,
        num_blocks: int = 8,
        num_layers: int = 8,
        growth_rate: int = 16,
        bottleneck_features: int = 256,
        bottleneck_activation: bool = True,
        deconv_size: int = 3,
        tail_bias: bool = True,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.bottleneck_activation = bottleneck_activation
        self.low_level: ConvLayer = ConvLayer(in_channels, num_features)
        # Blocks are connected as the layers of a block are, so they are the layers of one.
        self.blocks: DenseBlock = DenseBlock(
            num_features,
            num_blocks,
            num_layers * growth_rate,
            lambda channels: SRDenseBlock(channels, num_layers, growth_rate),
        )
        self.bottleneck: nn.Conv2d = nn.Conv2d(self.blocks.out_channels, bottleneck_features, 1, bias=tail_bias)
        self.deconvs: nn.ModuleList = nn.ModuleList()
        steps = [(r, Fraction(1)) for r in [self.low_level.radius, *layer_radii(self.blocks)]]
        resolution = Fraction(1)
        for stride in shuffle_stages(scale):
            if deconv_size < stride:
                raise ConfigError(
                    f"deconv_size={deconv_size} leaves gaps at stride {stride}: expected {stride} or more"
                )
            padding = (deconv_size - stride + 1) // 2
            self.deconvs.append(
                nn.ConvTranspose2d(
                    bottleneck_features,
                    bottleneck_features,
                    deconv_size,
                    stride=stride,
                    padding=padding,
                    output_padding=stride - deconv_size + 2 * padding,
                    bias=tail_bias,
                )
            )
            resolution *= stride
            steps.append((max(padding, deconv_size - 1 - padding), resolution))
        out_channels = in_channels if out_channels is None else out_channels
        self.reconstruction: nn.Conv2d = nn.Conv2d(bottleneck_features, out_channels, 3, padding=1, bias=tail_bias)
        self.receptive_field: int = radius([*steps, (1, resolution)])
        self.tail_radius: int = radius([*steps[num_blocks + 1 :], (1, resolution)])
        self.block_radius = num_layers
        context = max(2, self.block_radius, self.tail_radius)
        self.demand: Demand = Demand(context, num_blocks * growth_rate + bottleneck_features, passes=num_blocks + 2)
        init_he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self._enlarge(self.bottleneck(self.blocks(self.low_level(x))))

    def stream(self, x: Tensor, tiles: Tiles) -> Tensor:
        """Returns what `forward` does, each block over tiles with its own context alone.

        A block's maps are never kept: what later blocks' first convolutions and the bottleneck make of them is added
        up at once. Those sums, growth_rate channels for each block and bottleneck_features, are all that is alive.
        """
        blocks = list(self.blocks.children())
        # Optimised, a layer is itself a convolution.
        firsts: list[Any] = [getattr(block.first, "conv", block.first) for block in blocks]
        growth, width = firsts[0].weight.shape[:2]
        sums = tiles.map(lambda x: self._shares(self.low_level(x), 0, firsts, with_bias=True), 2, x)
        for index, block in enumerate(blocks):

            def hand_on(own: Tensor, dense: Any = block.dense, start: int = width, later: int = index + 1) -> Tensor:
                return self._shares(dense(F.relu(own)), start, firsts[later:])

            tiles.map(hand_on, self.block_radius, sums[:, :growth], onto=sums[:, growth:])
            sums, width = sums[:, growth:], width + self.blocks.growth_rate
        return tiles.map(self._enlarge, self.tail_radius, sums, scale=self.scale)

    def _shares(self, maps: Tensor, start: int, readers: list[nn.Conv2d], *, with_bias: bool = False) -> Tensor:
        """Returns what maps, those from number `start` on, add to each convolution that reads them.

        The last channels are what they add to the bottleneck, whose convolution is 1x1.
        """
        part = slice(start, start + maps.shape[1])
        shares = [F.conv2d(maps, self.bottleneck.weight[:, part], self.bottleneck.bias if with_bias else None)]
        if readers:
            weight = torch.cat([conv.weight[:, part] for conv in readers])
            bias = torch.cat([conv.bias for conv in readers if conv.bias is not None]) if with_bias else None
            shares.insert(0, F.conv2d(maps, weight, bias, padding=1))
        return torch.cat(shares, dim=1)

    def _enlarge(self, x: Tensor) -> Tensor:
        if self.bottleneck_activation:
            x = F.relu(x, inplace=True)
        for deconv in self.deconvs:
            x = F.relu(deconv(x), inplace=True)
        return self.reconstruction(x)

"""RDN: residual dense network for image super-resolution."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks import BicubicSkip, EspcnTail, PixelShuffleTail, ResidualDenseBlock, radius
from densekit.blocks.layers import layer_radii
from densekit.errors import ConfigError, suggest
from densekit.models.network import Network
from densekit.tiling import Demand, Tiles

UPSAMPLERS = {
    "pixelshuffle": "convolutions and shuffles, num_features wide, as in the paper",
    "pixelshuffle_growth": "the same, growth_rate wide, as in EDSR-PyTorch; no other where the two are equal",
    "pixelshuffledirect": "one convolution and one shuffle, for small nets",
    "espcn": "ESPCN's three convolutions and a shuffle, as in idealo's ISR",
    "espcn_nearest": "the same, but pixels repeated in place of the shuffle, as in ISR's first weights",
}


class RDN(Network):
    """Residual dense network: shallow features, D residual dense blocks, global fusion, sub-pixel upsampling.

    RDN B of the paper is the default; RDN A is `num_blocks=20, num_layers=6, growth_rate=32`.

    Args:
        scale: 2, 3, 4 or 8.
        in_channels, out_channels: of the images.
        num_features: G0, width between blocks.
        num_blocks: D.
        num_layers: C, convolutions of a dense block.
        growth_rate: G, maps each convolution adds.
        upsampler: one of `UPSAMPLERS`; an output convolution follows all but "pixelshuffledirect".
        bicubic_skip: adds the bicubic enlargement of the input to the output, so that the network learns the
            difference only (VDSR's residual). Not in the paper; its effect was not measured here.

    Shapes: (B, in_channels, H, W) in 0..1 -> (B, out_channels, scale H, scale W), not clamped.

    Raises:
        ConfigError: an unknown scale or upsampler, or a skip between different channel counts.

    Source: Zhang et al., Residual Dense Network for Image Super-Resolution (CVPR 2018); yulunzhang/RDN.
    """

    output_name = "tail"
    multiple_of = 1

    def __init__(
        self,
        scale: int = 2,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        num_features: int = 64,
        num_blocks: int = 16,
        num_layers: int = 8,
        growth_rate: int = 64,
        upsampler: str = "pixelshuffle",
        bicubic_skip: bool = False,
    ) -> None:
        super().__init__()
        if upsampler not in UPSAMPLERS:
            known = ", ".join(UPSAMPLERS)
            raise ConfigError(f"upsampler={upsampler!r}: no such upsampler{suggest(upsampler, UPSAMPLERS)} ({known})")
        if bicubic_skip and in_channels != out_channels:
            raise ConfigError(f"bicubic_skip needs as many channels out as in, not {in_channels} and {out_channels}")
        self.scale = scale
        self.sfe1: nn.Conv2d = nn.Conv2d(in_channels, num_features, 3, padding=1)
        self.sfe2: nn.Conv2d = nn.Conv2d(num_features, num_features, 3, padding=1)
        self.blocks: nn.ModuleList = nn.ModuleList(
            ResidualDenseBlock(num_features, num_layers, growth_rate) for _ in range(num_blocks)
        )
        self.gff: nn.Sequential = nn.Sequential(
            nn.Conv2d(num_blocks * num_features, num_features, 1),
            nn.Conv2d(num_features, num_features, 3, padding=1),
        )
        self.tail: PixelShuffleTail | EspcnTail
        if upsampler.startswith("espcn"):
            self.tail = EspcnTail(num_features, out_channels, scale, shuffle=upsampler == "espcn")
        else:
            self.tail = PixelShuffleTail(
                num_features,
                out_channels,
                scale,
                features=growth_rate if upsampler == "pixelshuffle_growth" else num_features,
                direct=upsampler == "pixelshuffledirect",
            )
        self.skip: BicubicSkip | None = BicubicSkip(scale) if bicubic_skip else None
        one = Fraction(1)
        body = [(r, one) for r in layer_radii(self.blocks)]
        self.receptive_field: int = radius([(1, one), (1, one), *body, (1, one), *self.tail.steps])
        self.block_radius: int = max(layer_radii(self.blocks))
        self.tail_radius: int = max(radius([(1, one), *self.tail.steps]), self.skip.radius if self.skip else 0)
        context = max(2, self.block_radius, self.tail_radius)
        self.demand: Demand = Demand(context, channels=3 * num_features, passes=num_blocks + 3)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.sfe1(x)
        features = self.sfe2(shallow)
        fused = []
        for block in self.blocks:
            features = block(features)
            fused.append(features)
        y = self.tail(self.gff(torch.cat(fused, dim=1)) + shallow)
        return y if self.skip is None else y + self.skip(x)

    def stream(self, x: Tensor, tiles: Tiles) -> Tensor:
        """Returns what `forward` does, each block over tiles with its own context alone.

        Two maps of features are alive, and a row of tiles: a block's output takes the place of its input, and what the
        global fusion's 1x1 convolution makes of it is added up, as a matrix product, which needs no memory of its own.
        The shallow features are made again at the end.
        """
        fusion: Any = self.gff[0]
        first, *rest = fusion.weight.split(self.sfe2.weight.shape[0], dim=1)
        maps = tiles.map(lambda x: self.sfe2(self.sfe1(x)), 2, x)
        tiles.map(self.blocks[0], self.block_radius, maps, into=maps)
        # The first share tile by tile: so the map that it makes is allocated where running out of memory is handled.
        fused = tiles.map(partial(F.conv2d, weight=first, bias=fusion.bias), 0, maps)
        for block, weight in zip(self.blocks[1:], rest, strict=True):
            tiles.map(block, self.block_radius, maps, into=maps)
            as_matrix(fused).addmm_(as_matrix(maps), weight.flatten(1).t())
        del maps

        def finish(fused: Tensor, x: Tensor) -> Tensor:
            y = self.tail(self.gff[1](fused) + self.sfe1(x))
            return y if self.skip is None else y + self.skip(x)

        return tiles.map(finish, self.tail_radius, fused, x, scale=self.scale)


def as_matrix(maps: Tensor) -> Tensor:
    """Returns a view of maps that are stored channels last, (B, C, H, W), as a matrix of (B H W, C)."""
    return maps.permute(0, 2, 3, 1).view(-1, maps.shape[1])

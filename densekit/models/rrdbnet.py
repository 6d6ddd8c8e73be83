"""RRDBNet: the generator of ESRGAN and Real-ESRGAN."""

from __future__ import annotations

from fractions import Fraction

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks import RRDB, init_he_normal_, radius
from densekit.blocks.layers import layer_radii, leaky_relu
from densekit.errors import ConfigError
from densekit.models.network import Network
from densekit.tiling import Demand, Tiles


class RRDBNet(Network):
    """Residual in residual dense blocks between two convolutions, then nearest-neighbour upsampling and convolutions.

    ESRGAN's network is the default; `num_blocks=6` is Real-ESRGAN's for anime.

    Args:
        scale: 1, 2, 4 or 8.
        in_channels, out_channels: of the images.
        num_features: nf, width between blocks.
        num_blocks: nb.
        growth_rate: gc, maps each convolution of a dense block adds.
        residual_scale: factor on the maps of every block before its input is added.
        unshuffle: scales 1 and 2 fold 4x4 or 2x2 pixels into channels first and then run the network of scale 4, as
            BasicSR and Real-ESRGAN do: the blocks see a 16th or a quarter of the pixels. Otherwise they have fewer
            upsampling steps, as in the first ESRGAN. No difference at scales 4 and 8.
        plus: dense blocks with the additional sums of ESRGAN+ (Rakotonirina and Rasoanaivo, ICASSP 2020).

    Shapes: (B, in_channels, H, W) in 0..1 -> (B, out_channels, scale H, scale W), not clamped; H and W are to be
    multiples of `multiple_of`.

    Raises:
        ConfigError: an unknown scale.

    Source: Wang et al., ESRGAN (ECCV Workshops 2018); xinntao/ESRGAN, XPixelGroup/BasicSR `rrdbnet_arch.py`.
    """

    output_name = "conv_last"

    def __init__(
        self,
        scale: int = 4,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        num_features: int = 64,
        num_blocks: int = 23,
        growth_rate: int = 32,
        residual_scale: float = 0.2,
        unshuffle: bool = True,
        plus: bool = False,
    ) -> None:
        super().__init__()
        if scale not in (1, 2, 4, 8):
            raise ConfigError(f"scale={scale}: expected 1, 2, 4 or 8")
        self.scale = scale
        factor = max(1, 4 // scale) if unshuffle else 1
        self.multiple_of: int = factor
        self.conv_first: nn.Conv2d = nn.Conv2d(factor**2 * in_channels, num_features, 3, padding=1)
        self.body: nn.ModuleList = nn.ModuleList(
            RRDB(num_features, growth_rate, residual_scale=residual_scale, plus=plus) for _ in range(num_blocks)
        )
        self.conv_body: nn.Conv2d = nn.Conv2d(num_features, num_features, 3, padding=1)
        num_doublings = (factor * scale).bit_length() - 1
        self.conv_ups: nn.ModuleList = nn.ModuleList(
            nn.Conv2d(num_features, num_features, 3, padding=1) for _ in range(num_doublings)
        )
        self.conv_hr: nn.Conv2d = nn.Conv2d(num_features, num_features, 3, padding=1)
        self.conv_last: nn.Conv2d = nn.Conv2d(num_features, out_channels, 3, padding=1)
        init_he_normal_(self.body, gain=0.1)
        folded = Fraction(1, factor)
        steps = [(factor - 1, Fraction(1)), *((r, folded) for r in [1, *layer_radii(self.body)])]
        tail = [(1, folded * 2**i) for i in range(num_doublings + 1)] + 2 * [(1, Fraction(scale))]
        self.receptive_field: int = radius([*steps, *tail])
        self.block_radius: int = max(layer_radii(self.body[0]))
        self.tail_radius: int = radius([(r, resolution / folded) for r, resolution in tail])  # in pixels of the maps
        context = factor * max(self.block_radius, self.tail_radius)
        self.demand: Demand = Demand(context, channels=3 * num_features / factor**2, passes=3 * num_blocks + 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.multiple_of > 1:
            x = F.pixel_unshuffle(x, self.multiple_of)
        shallow = self.conv_first(x)
        x = shallow
        for block in self.body:
            x = block(x)
        return self._enlarge(self.conv_body(x) + shallow)

    def stream(self, x: Tensor, tiles: Tiles) -> Tensor:
        """Returns what `forward` does, each residual dense block over tiles with its own context alone.

        Two maps of features are alive, and a row of tiles: the input of an RRDB, and what its blocks make of it, one in
        the place of the other. The shallow features are made again at the end.
        """
        if self.multiple_of > 1:
            x = F.pixel_unshuffle(x, self.multiple_of)
        maps = tiles.map(self.conv_first, 1, x)
        for block in self.body:
            self._stream_block(block, maps, tiles)

        def finish(maps: Tensor, x: Tensor) -> Tensor:
            return self._enlarge(self.conv_body(maps) + self.conv_first(x))

        return tiles.map(finish, self.tail_radius, maps, x, scale=self.scale * self.multiple_of)

    def _stream_block(self, block: nn.Module, maps: Tensor, tiles: Tiles) -> None:
        """Runs an RRDB on maps and puts the result in their place."""
        first, *inner, last = block.children()
        y = tiles.map(first, self.block_radius, maps)
        for part in inner:
            tiles.map(part, self.block_radius, y, into=y)
        tiles.map(lambda y, x: last(y) * block.residual_scale + x, self.block_radius, y, maps, into=maps)

    def _enlarge(self, x: Tensor) -> Tensor:
        for conv in self.conv_ups:
            x = leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(leaky_relu(self.conv_hr(x)))

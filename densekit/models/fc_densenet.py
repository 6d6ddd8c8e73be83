"""FC-DenseNet, the One Hundred Layers Tiramisu."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor, nn

from densekit.blocks import BasicLayer, DenseBlock, Transition, init_he_uniform_, radius
from densekit.blocks.layers import layer_radii
from densekit.errors import ConfigError
from densekit.models.network import Network
from densekit.models.statistics import register_statistics


class FCDenseNet(Network):
    """Fully convolutional DenseNet: dense blocks down, a bottleneck block, dense blocks up with skips.

    FC-DenseNet 56 is the default; 67 is `growth_rate=16, num_layers=5`; 103 is `growth_rate=16,
    num_layers=(4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4)`. On the way up a block passes on only its new maps; the last
    one passes all to the classifier.

    Args:
        num_classes: channels of the logits; 1 for foreground against background.
        in_channels: of the images.
        num_init_features: maps of the first convolution.
        growth_rate: k.
        num_pools: halvings, and blocks on each side.
        num_layers: layers of each block, one number for all or 2 num_pools + 1 of them, top to bottom to top.
        drop_rate: element-wise dropout after every convolution but the first and the last, 0..1.
        mean, std: per channel, subtracted from and divided into the image in 0..1; they are part of the model.

    Shapes: (B, in_channels, H, W) in 0..1 -> logits (B, num_classes, H, W); H and W at least 2 ** num_pools.

    Raises:
        ConfigError: a number of blocks or of channel statistics that does not fit.

    Source: Jegou et al., The One Hundred Layers Tiramisu (CVPR Workshops 2017); SimJeg/FC-DenseNet. The paper prints
    1.5 M parameters for FC-DenseNet 56, its code makes 1,376,795, as here.
    """

    scale = 1
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int = 11,
        *,
        in_channels: int = 3,
        num_init_features: int = 48,
        growth_rate: int = 12,
        num_pools: int = 5,
        num_layers: int | Sequence[int] = 4,
        drop_rate: float = 0.2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        counts = [num_layers] * (2 * num_pools + 1) if isinstance(num_layers, int) else list(num_layers)
        if len(counts) != 2 * num_pools + 1:
            raise ConfigError(
                f"num_layers has {len(counts)} entries: expected {2 * num_pools + 1} for {num_pools} pools"
            )
        self.multiple_of = 1
        self.min_size = 2**num_pools
        register_statistics(self, in_channels, mean, std)

        def make_block(channels: int, layers: int) -> DenseBlock:
            return DenseBlock(
                channels,
                layers,
                growth_rate,
                lambda c: BasicLayer(c, growth_rate, bias=True, drop_rate=drop_rate),
            )

        self.conv0 = nn.Conv2d(in_channels, num_init_features, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        self.transitions_down = nn.ModuleList()
        channels = num_init_features
        skips = []
        for layers in counts[:num_pools]:
            block = make_block(channels, layers)
            channels = block.out_channels
            skips.append(channels)
            self.down_blocks.append(block)
            self.transitions_down.append(
                Transition(channels, channels, nn.MaxPool2d(2), bias=True, drop_rate=drop_rate)
            )
        self.bottleneck = make_block(channels, counts[num_pools])
        self.transitions_up = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        new_channels = growth_rate * counts[num_pools]
        for layers, skip in zip(counts[num_pools + 1 :], reversed(skips), strict=True):
            self.transitions_up.append(nn.ConvTranspose2d(new_channels, new_channels, 3, stride=2))
            block = make_block(new_channels + skip, layers)
            self.up_blocks.append(block)
            new_channels = growth_rate * layers
        self.classifier = nn.Conv2d(block.out_channels, num_classes, 1)
        init_he_uniform_(self)
        self.receptive_field = self._radius()

    def _radius(self) -> int:
        """Sums the longest path: pools see a pixel of their finer grid, transposed convolutions one of the coarser."""
        steps = [(1, Fraction(1))]
        for level, block in enumerate(self.down_blocks):
            steps += [(r, Fraction(1, 2**level)) for r in [*layer_radii(block), 1]]
        depth = len(self.down_blocks)
        steps += [(r, Fraction(1, 2**depth)) for r in layer_radii(self.bottleneck)]
        for i, block in enumerate(self.up_blocks):
            steps.append((1, Fraction(1, 2 ** (depth - i))))
            steps += [(r, Fraction(1, 2 ** (depth - i - 1))) for r in layer_radii(block)]
        return radius(steps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0((x - self.mean) / self.std)
        skips = []
        for block, transition in zip(self.down_blocks, self.transitions_down, strict=True):
            x = block(x)
            skips.append(x)
            x = transition(x)
        x = self.bottleneck(x, only_new=True)
        for transition, block in zip(self.transitions_up, self.up_blocks, strict=True):
            skip = skips.pop()
            x = block(crop_to(transition(x), skip), skip, only_new=bool(skips))
        return self.classifier(x)


def crop_to(x: Tensor, like: Tensor) -> Tensor:
    """Returns the centre of `x` (B, C, H, W) in the height and width of `like`, rounding the offset down."""
    height, width = like.shape[-2:]
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]

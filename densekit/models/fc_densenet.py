"""FC-DenseNet, the One Hundred Layers Tiramisu."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial

from torch import Tensor, nn

from densekit.blocks import BasicLayer, DenseBlock, Transition, init_he_uniform_, radius
from densekit.blocks.layers import layer_radii
from densekit.errors import ConfigError
from densekit.models.densenet import check_taps
from densekit.models.network import Network
from densekit.models.statistics import register_statistics, standardized


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

    output_name = "classifier"
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
        counts = layers_of_blocks(num_layers, num_pools)
        self.multiple_of = 1
        self.min_size: int = 2**num_pools
        register_statistics(self, in_channels, mean, std)
        make_block = partial(dense_block, growth_rate=growth_rate, drop_rate=drop_rate)
        self.conv0: nn.Conv2d = nn.Conv2d(in_channels, num_init_features, 3, padding=1)
        self.down_blocks: nn.ModuleList = nn.ModuleList()
        self.transitions_down: nn.ModuleList = nn.ModuleList()
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
        self.bottleneck: DenseBlock = make_block(channels, counts[num_pools])
        self.transitions_up: nn.ModuleList = nn.ModuleList()
        self.up_blocks: nn.ModuleList = nn.ModuleList()
        new_channels = growth_rate * counts[num_pools]
        for layers, skip in zip(counts[num_pools + 1 :], reversed(skips), strict=True):
            self.transitions_up.append(nn.ConvTranspose2d(new_channels, new_channels, 3, stride=2))
            block = make_block(new_channels + skip, layers)
            self.up_blocks.append(block)
            new_channels = growth_rate * layers
        self.classifier: nn.Conv2d = nn.Conv2d(block.out_channels, num_classes, 1)
        init_he_uniform_(self)
        self.receptive_field: int = self._radius()

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
        x = self.conv0(standardized(self, x))
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


class FCDenseNetEncoder(Network):
    """The way down of FC-DenseNet, from the image's own size on: the feature maps of the blocks asked for.

    What no tap needs is not built, so every parameter gets a gradient; the keys that remain are the network's.

    Args:
        in_channels: of the images.
        out_indices: the taps, ascending: i is the i-th dense block on the way down, counted from 0, `num_pools` the
            bottleneck, each as it concatenates, which is what FC-DenseNet's skips are; None, every block.
        output_stride: 8, 16 or 32, the largest reduction: beyond it transitions drop their pool, and later 3x3
            convolutions double their dilation. Weights fit every output stride.
        num_init_features, growth_rate, num_pools, num_layers, drop_rate, mean, std: as in `FCDenseNet`.

    Shapes: (B, in_channels, H, W) in 0..1 -> list of (B, channels[i], H / reductions[i], W / reductions[i]), one for
    each tap. `receptive_field` is that of the deepest, in input pixels.

    Raises:
        ConfigError: an argument with an impossible value.

    Source: as `FCDenseNet`; dilation as in Yu et al., Dilated Residual Networks (CVPR 2017), pools in place of strides.
    """

    scale = 1
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        output_stride: int = 32,
        num_init_features: int = 48,
        growth_rate: int = 12,
        num_pools: int = 5,
        num_layers: int | Sequence[int] = 4,
        drop_rate: float = 0.2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        counts = layers_of_blocks(num_layers, num_pools)
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride={output_stride}: expected 8, 16 or 32")
        out_indices = check_taps(
            range(num_pools + 1) if out_indices is None else out_indices, num_pools, "0 (first block)"
        )
        register_statistics(self, in_channels, mean, std)
        self.conv0: nn.Conv2d = nn.Conv2d(in_channels, num_init_features, 3, padding=1)
        self.down_blocks: nn.ModuleList
        self.transitions_down: nn.ModuleList
        self.down_blocks, self.transitions_down = nn.ModuleList(), nn.ModuleList()
        steps = [(1, Fraction(1))]
        made: list[tuple[int, int]] = []  # (channels, reduction) of each block
        channels, reduction, dilation = num_init_features, 1, 1
        for i, layers in enumerate(counts[: out_indices[-1] + 1]):
            if i > 0:
                is_kept = 2 * reduction > output_stride
                pool = nn.Identity() if is_kept else nn.MaxPool2d(2)
                self.transitions_down.append(Transition(channels, channels, pool, bias=True, drop_rate=drop_rate))
                steps.append((0 if is_kept else 1, Fraction(1, reduction)))
                reduction, dilation = (reduction, 2 * dilation) if is_kept else (2 * reduction, dilation)
            block = dense_block(channels, layers, growth_rate=growth_rate, drop_rate=drop_rate, dilation=dilation)
            if i == num_pools:
                self.bottleneck = block
            else:
                self.down_blocks.append(block)
            channels = block.out_channels
            steps += [(r, Fraction(1, reduction)) for r in layer_radii(block)]
            made.append((channels, reduction))
        init_he_uniform_(self)
        self.out_indices: tuple[int, ...] = tuple(out_indices)
        self.channels: tuple[int, ...]
        self.reductions: tuple[int, ...]
        self.channels, self.reductions = zip(*(made[i] for i in out_indices), strict=True)
        self.multiple_of = reduction
        self.receptive_field: int = radius(steps)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv0(standardized(self, x))
        taps = []
        blocks = [*self.down_blocks, self.bottleneck] if hasattr(self, "bottleneck") else self.down_blocks
        for i, block in enumerate(blocks):
            x = block(self.transitions_down[i - 1](x) if i > 0 else x)
            taps += [x] if i in self.out_indices else []
        return taps


def layers_of_blocks(num_layers: int | Sequence[int], num_pools: int) -> list[int]:
    """Returns the layers of each of 2 num_pools + 1 blocks.

    Raises:
        ConfigError: they are more or fewer.
    """
    counts = [num_layers] * (2 * num_pools + 1) if isinstance(num_layers, int) else list(num_layers)
    if len(counts) != 2 * num_pools + 1:
        raise ConfigError(f"num_layers has {len(counts)} entries: expected {2 * num_pools + 1} for {num_pools} pools")
    return counts


def dense_block(channels: int, layers: int, *, growth_rate: int, drop_rate: float, dilation: int = 1) -> DenseBlock:
    """Returns a dense block of FC-DenseNet's layers, which have biases."""
    return DenseBlock(
        channels,
        layers,
        growth_rate,
        partial(BasicLayer, growth_rate=growth_rate, bias=True, drop_rate=drop_rate, dilation=dilation),
    )


def crop_to(x: Tensor, like: Tensor) -> Tensor:
    """Returns the centre of `x` (B, C, H, W) in the height and width of `like`.

    A transposed convolution gives one row and column more at most, so the offset of the centre rounds down to 0.
    Written as such, sizes stay plain expressions of the image's where the network is exported.
    """
    return x.narrow(-2, 0, like.shape[-2]).narrow(-1, 0, like.shape[-1])

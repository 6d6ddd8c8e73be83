"""DenseNet: a classifier and an encoder over the same features, named as in torchvision."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks import BasicLayer, BottleneckLayer, Chain, DenseBlock, Transition, init_densenet_, radius
from densekit.blocks.layers import check_dropout, layer_radii
from densekit.errors import ConfigError
from densekit.models.network import Network
from densekit.models.statistics import register_statistics, standardized

TAPS = ("act", "raw", "smp")


class DenseNet(Network):
    """DenseNet classifier: features, ReLU, global average pool, linear layer.

    DenseNet-121 is the default. State dicts of torchvision and timm load as they are.

    Args:
        num_classes: logits; 0 for no classifier, the pooled features are the output then.
        in_channels: of the images.
        growth_rate: k, maps each layer adds.
        block_config: layers of each dense block.
        depth: L, in place of `block_config`: three blocks of (L - 4) / 3 layers, of half as many with a bottleneck.
        num_init_features: maps of the first convolution; 2 k if None.
        bn_size: width of the bottleneck in units of k; None for layers without one, BN-ReLU-3x3.
        compression: theta, the share of maps that a transition keeps, 0..1.
        stem: "imagenet" (7x7 stride 2, norm, ReLU, max pool 3x3 stride 2) or "cifar" (3x3, nothing else).
        drop_rate: share of activations set to zero in training, 0..1.
        dropout: where: "paper", after every convolution but the first, or "torchvision", after the 3x3 ones only.
        mean, std: per channel, subtracted from and divided into the image in 0..1; they are part of the model.

    Shapes: (B, in_channels, H, W) in 0..1 -> logits (B, num_classes). `receptive_field` is that of a feature before the
    global pool.

    Raises:
        ConfigError: an argument with an impossible value.

    Source: Huang et al., Densely Connected Convolutional Networks (CVPR 2017); liuzhuang13/DenseNet. The plain CIFAR
    nets of the paper's table start with 16 maps, the Lua code with 2 k; their names here have the paper's.
    """

    scale = 1
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        depth: int | None = None,
        num_init_features: int | None = None,
        bn_size: int | None = 4,
        compression: float = 0.5,
        stem: str = "imagenet",
        drop_rate: float = 0.0,
        dropout: str = "paper",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        register_statistics(self, in_channels, mean, std)
        blocks = block_config if depth is None else blocks_of_depth(depth, bn_size)
        self.features: Chain = build_features(
            in_channels,
            growth_rate,
            blocks,
            num_init_features=num_init_features,
            bn_size=bn_size,
            compression=compression,
            stem=stem,
            drop_rate=drop_rate,
            dropout=dropout,
        )
        channels = tap_channels(self.features)[-1]
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.features.add_module("relu5", nn.ReLU(inplace=True))
        self.classifier: nn.Linear | nn.Identity = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        init_densenet_(self)
        self.receptive_field: int
        reductions, self.receptive_field = measure(self.features)
        self.multiple_of: int = reductions[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(standardized(self, x))
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(x.flatten(1))


class DenseNetEncoder(Network):
    """DenseNet without its classifier: the feature maps of the stages asked for.

    What no tap needs is not built, so every parameter gets a gradient; the keys that remain are the classifier's.

    Args:
        in_channels: of the images.
        out_indices: the taps, ascending: 0 is the stem before its max pool, i the i-th dense block; None, every block.
        taps: "act", block outputs after norm and ReLU, as the next transition computes them; "raw", block outputs as
            concatenated, which is what timm gives. The last block's output is after norm5 and ReLU in both. "smp", as
            "act" but for the last, which is after norm5 alone: what segmentation_models_pytorch gives.
        output_stride: 8, 16 or 32, the largest reduction: beyond it transitions keep their 1x1 convolution and drop
            their pool, and later 3x3 convolutions double their dilation. Weights fit every output stride.
        growth_rate, block_config, depth, num_init_features, bn_size, compression, stem, drop_rate, dropout, mean, std:
            as in `DenseNet`.

    Shapes: (B, in_channels, H, W) in 0..1 -> list of (B, channels[i], H / reductions[i], W / reductions[i]), one for
    each tap. `receptive_field` is that of the deepest, in input pixels.

    Raises:
        ConfigError: an argument with an impossible value.

    Source: as `DenseNet`; dilation as in Yu et al., Dilated Residual Networks (CVPR 2017), pools in place of strides.
    """

    scale = 1
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        taps: str = "act",
        output_stride: int = 32,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        depth: int | None = None,
        num_init_features: int | None = None,
        bn_size: int | None = 4,
        compression: float = 0.5,
        stem: str = "imagenet",
        drop_rate: float = 0.0,
        dropout: str = "paper",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        blocks = block_config if depth is None else blocks_of_depth(depth, bn_size)
        out_indices = check_taps(range(1, len(blocks) + 1) if out_indices is None else out_indices, len(blocks))
        if taps not in TAPS:
            raise ConfigError(f"taps={taps!r}: expected 'act', 'raw' or 'smp'")
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride={output_stride}: expected 8, 16 or 32")
        register_statistics(self, in_channels, mean, std)
        last = out_indices[-1]
        self.features: Chain = build_features(
            in_channels,
            growth_rate,
            blocks[:last],
            num_init_features=num_init_features,
            bn_size=bn_size,
            compression=compression,
            stem=stem,
            drop_rate=drop_rate,
            dropout=dropout,
            output_stride=output_stride,
        )
        channels = tap_channels(self.features)
        if last == len(blocks):
            self.features.add_module("norm5", nn.BatchNorm2d(channels[-1]))
            if taps != "smp":
                self.features.add_module("relu5", nn.ReLU(inplace=True))
        elif taps != "raw" and last > 0:
            activate = OrderedDict(norm=nn.BatchNorm2d(channels[-1]), relu=nn.ReLU(inplace=True))
            self.features.add_module(f"transition{last}", Chain(activate))
        init_densenet_(self)
        names = ["relu0" if stem == "imagenet" else "conv0"]
        names += [f"denseblock{i}" if taps == "raw" else f"transition{i}" for i in range(1, len(blocks))]
        names.append("norm5" if taps == "smp" else "relu5")
        self.tap_names: frozenset[str] = frozenset(names[i] for i in out_indices)
        self.receptive_field: int
        reductions, self.receptive_field = measure(self.features)
        self.channels: tuple[int, ...] = tuple(channels[i] for i in out_indices)
        self.reductions: tuple[int, ...] = tuple(reductions[i] for i in out_indices)
        self.multiple_of: int = reductions[-1]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.features.tapped(standardized(self, x), self.tap_names)[0]


def build_features(
    in_channels: int,
    growth_rate: int,
    block_config: Sequence[int],
    *,
    num_init_features: int | None,
    bn_size: int | None,
    compression: float,
    stem: str,
    drop_rate: float,
    dropout: str,
    output_stride: int = 32,
) -> Chain:
    """Returns stem, dense blocks and the transitions between them; what follows the last block is the caller's.

    Raises:
        ConfigError: an unknown stem, dropout placement.
    """
    check_dropout(dropout)
    channels = 2 * growth_rate if num_init_features is None else num_init_features
    features = Chain()
    if stem == "imagenet":
        features.add_module("conv0", nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False))
        features.add_module("norm0", nn.BatchNorm2d(channels))
        features.add_module("relu0", nn.ReLU(inplace=True))
        if block_config:
            features.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))
        reduction = 4
    elif stem == "cifar":
        features.add_module("conv0", nn.Conv2d(in_channels, channels, 3, padding=1, bias=False))
        reduction = 1
    else:
        raise ConfigError(f"stem={stem!r}: expected 'imagenet' or 'cifar'")

    def make_layer(channels: int, dilation: int) -> nn.Module:
        if bn_size is None:
            return BasicLayer(channels, growth_rate, drop_rate=drop_rate, dilation=dilation)
        return BottleneckLayer(
            channels, growth_rate, bn_size=bn_size, drop_rate=drop_rate, dropout=dropout, dilation=dilation
        )

    dilation = 1
    for i, num_layers in enumerate(block_config):
        if i > 0:
            pool: nn.Module
            if 2 * reduction <= output_stride:
                pool = nn.AvgPool2d(2)
                reduction *= 2
            else:
                pool = nn.Identity()
                dilation *= 2
            kept = int(compression * channels)
            transition_drop = drop_rate if dropout == "paper" else 0.0
            features.add_module(f"transition{i}", Transition(channels, kept, pool, drop_rate=transition_drop))
            channels = kept
        block = DenseBlock(channels, num_layers, growth_rate, partial(make_layer, dilation=dilation))
        features.add_module(f"denseblock{i + 1}", block)
        channels = block.out_channels
    return features


def blocks_of_depth(depth: int, bn_size: int | None) -> tuple[int, int, int]:
    """Returns the layers of the three dense blocks of a CIFAR net with `depth` layers in all.

    Raises:
        ConfigError: such a depth does not divide.
    """
    divisor = 3 if bn_size is None else 6
    if depth <= 4 or (depth - 4) % divisor:
        kind = "without" if bn_size is None else "with"
        near = 4 + divisor * max(1, round((depth - 4) / divisor))
        raise ConfigError(f"depth={depth}: a net {kind} bottleneck has {divisor} n + 4 layers; the nearest is {near}")
    return ((depth - 4) // divisor,) * 3


def check_taps(out_indices: Sequence[int], last: int, first: str = "0 (stem)") -> list[int]:
    """Returns `out_indices` as a list if they ascend from 0, which a message calls `first`, at the least to `last`.

    Raises:
        ConfigError: they do not, or there are none.
    """
    indices = list(out_indices)
    if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] > last:
        raise ConfigError(f"out_indices={tuple(indices)}: expected ascending numbers from {first} to {last}")
    return indices


def tap_channels(features: nn.Sequential) -> list[int]:
    """Returns the channels at the stem and after each dense block."""
    return [module.out_channels for module in features if isinstance(module, nn.Conv2d | DenseBlock)]


def measure(features: nn.Sequential) -> tuple[list[int], int]:
    """Returns the reductions at the stem and after each dense block, and the radius of the last, in input pixels."""
    resolution = Fraction(1)
    steps: list[tuple[int, Fraction]] = []
    reductions = []
    for module in features:
        if isinstance(module, nn.Conv2d):
            steps.append((module.kernel_size[0] // 2, resolution))
            resolution /= module.stride[0]
            reductions.append(resolution.denominator)
        elif isinstance(module, nn.MaxPool2d) or (
            isinstance(module, Transition) and isinstance(module.pool, nn.AvgPool2d)
        ):
            steps.append((1, resolution))
            resolution /= 2
        elif isinstance(module, DenseBlock):
            steps += [(r, resolution) for r in layer_radii(module)]
            reductions.append(resolution.denominator)
    return reductions, radius(steps)

"""RDNet, the densely connected network of DenseNets Reloaded: a classifier and an encoder, named as in timm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.errors import ConfigError
from densekit.models.densenet import check_taps
from densekit.models.network import Network
from densekit.models.rdnet_stages import (
    PATCH,
    LayerNorm,
    build_stages,
    init_rdnet_,
    make_stem,
    measure,
    stage_channels,
)
from densekit.models.statistics import register_statistics, standardized


class RDNet(Network):
    """RDNet classifier: features, global average pool, norm, linear layer.

    RDNet-T is the default. State dicts of timm load as they are.

    Args:
        num_classes: logits.
        in_channels: of the images.
        growth_rate: k of each dense block.
        block_config: layers of each dense block.
        strides: what each block's transition divides the size by, 1 or 2; the first block has no transition, so 1.
        squeeze_from: the first block, counted from 0, whose layers end with effective squeeze-excitation.
        num_init_features: maps of the stem.
        expansion: width inside a layer in units of its input channels, rounded down to a multiple of 8.
        compression: theta, the share of maps that a transition keeps, 0..1, rounded down to a multiple of 8.
        layer_scale: what the factor of each of a layer's maps starts with.
        drop_rate: share of activations set to zero behind each layer in training, 0..1.
        drop_path_rate: share of images for which the last layer makes nothing in training, 0..1; it rises from 0 at the
            first layer.
        mean, std: per channel, subtracted from and divided into the image in 0..1; they are part of the model.

    Shapes: (B, in_channels, H, W) in 0..1 -> logits (B, num_classes). `receptive_field` is that of a feature before the
    global pool; None where a squeeze-excitation sees the whole image.

    Raises:
        ConfigError: an argument with an impossible value.

    Source: Kim et al., DenseNets Reloaded (ECCV 2024); naver-ai/rdnet.
    """

    scale = 1
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        growth_rate: Sequence[int] = (64, 104, 128, 128, 128, 128, 224),
        block_config: Sequence[int] = (3,) * 7,
        strides: Sequence[int] = (1, 2, 2, 1, 1, 1, 2),
        squeeze_from: int = 2,
        num_init_features: int = 64,
        expansion: float = 4,
        compression: float = 0.5,
        layer_scale: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        register_statistics(self, in_channels, mean, std)
        check_stages(growth_rate, block_config, strides)
        self.stem: nn.Sequential = make_stem(in_channels, num_init_features)
        self.dense_stages: nn.Sequential = build_stages(
            num_init_features,
            growth_rate,
            block_config,
            strides,
            squeeze_from=squeeze_from,
            expansion=expansion,
            compression=compression,
            layer_scale=layer_scale,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        channels = stage_channels(self.dense_stages)[-1]
        self.head: nn.Sequential = nn.Sequential(
            OrderedDict(norm=LayerNorm(channels), fc=nn.Linear(channels, num_classes))
        )
        init_rdnet_(self)
        self.multiple_of: int = PATCH * 2 ** list(strides).count(2)
        self.receptive_field: int | None = measure(self.dense_stages)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense_stages(self.stem(standardized(self, x)))
        norm, fc = self.head
        return fc(norm(F.adaptive_avg_pool2d(x, (1, 1))).flatten(1))


class RDNetEncoder(Network):
    """RDNet without its classifier: the feature maps of the levels asked for.

    A level is what lies between two halvings, one dense block or more. What no tap needs is not built, so every
    parameter gets a gradient; the keys that remain are the classifier's.

    Args:
        in_channels: of the images.
        out_indices: the taps, ascending: 0 is the stem, i the i-th level, as its last block concatenates; None, every
            level. The stem and the first level have the same size, a quarter of the image's.
        output_stride: 8, 16 or 32, the largest reduction: beyond it the 2x2 convolutions of transitions keep the size,
            and later convolutions see every second, then every fourth pixel. Weights fit every output stride.
        growth_rate, block_config, strides, squeeze_from, num_init_features, expansion, compression, layer_scale,
            drop_rate, drop_path_rate, mean, std: as in `RDNet`.

    Shapes: (B, in_channels, H, W) in 0..1 -> list of (B, channels[i], H / reductions[i], W / reductions[i]), one for
    each tap. `receptive_field` is that of the deepest, in input pixels; None where a squeeze-excitation sees all.

    Raises:
        ConfigError: an argument with an impossible value.

    Source: as `RDNet`; dilation as in Yu et al., Dilated Residual Networks (CVPR 2017).
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
        growth_rate: Sequence[int] = (64, 104, 128, 128, 128, 128, 224),
        block_config: Sequence[int] = (3,) * 7,
        strides: Sequence[int] = (1, 2, 2, 1, 1, 1, 2),
        squeeze_from: int = 2,
        num_init_features: int = 64,
        expansion: float = 4,
        compression: float = 0.5,
        layer_scale: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_stages(growth_rate, block_config, strides)
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride={output_stride}: expected 8, 16 or 32")
        ends = level_ends(strides)
        out_indices = check_taps(range(1, len(ends) + 1) if out_indices is None else out_indices, len(ends))
        register_statistics(self, in_channels, mean, std)
        self.stem: nn.Sequential = make_stem(in_channels, num_init_features)
        self.ends: list[int] = [0, *ends][: out_indices[-1] + 1]  # blocks up to the stem and to the end of each level
        self.dense_stages: nn.Sequential = build_stages(
            num_init_features,
            growth_rate,
            block_config,
            strides,
            count=self.ends[-1],
            squeeze_from=squeeze_from,
            expansion=expansion,
            compression=compression,
            layer_scale=layer_scale,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            output_stride=output_stride,
        )
        init_rdnet_(self)
        channels = [num_init_features, *stage_channels(self.dense_stages)]
        reductions = [PATCH, *(min(PATCH * 2**level, output_stride) for level in range(len(ends)))]
        self.tapped_blocks: frozenset[int] = frozenset(self.ends[i] for i in out_indices)
        self.channels: tuple[int, ...] = tuple(channels[self.ends[i]] for i in out_indices)
        self.reductions: tuple[int, ...] = tuple(reductions[i] for i in out_indices)
        self.multiple_of: int = reductions[out_indices[-1]]
        self.receptive_field: int | None = measure(self.dense_stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(standardized(self, x))
        taps = [x] if 0 in self.tapped_blocks else []
        for number, stage in enumerate(self.dense_stages, start=1):
            x = stage(x)
            taps += [x] if number in self.tapped_blocks else []
        return taps


def check_stages(growth_rate: Sequence[int], block_config: Sequence[int], strides: Sequence[int]) -> None:
    """Passes lists of the same length, and strides of 1 or 2 after the first.

    Raises:
        ConfigError: they are others.
    """
    for name, values in (("block_config", block_config), ("strides", strides)):
        if len(values) != len(growth_rate):
            raise ConfigError(f"{name} has {len(values)} entries: expected {len(growth_rate)}, as growth_rate has")
    if not strides or strides[0] != 1 or not {*strides} <= {1, 2}:
        raise ConfigError(f"strides={tuple(strides)}: expected 1 for the first block, and 1 or 2 for each other")


def level_ends(strides: Sequence[int]) -> list[int]:
    """Returns how many blocks there are up to the end of each level."""
    return [i for i in range(1, len(strides)) if strides[i] == 2] + [len(strides)]

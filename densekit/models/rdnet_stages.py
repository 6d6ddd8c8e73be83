"""What RDNet is made of: its layer, stem and stages, named as in timm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densekit.blocks import DenseBlock, radius
from densekit.blocks.parts import learns

PATCH = 4  # side of the stem's patches, in pixels
KERNEL = 7  # side of the depthwise convolutions


class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel; (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Squeeze(nn.Module):
    """Effective squeeze-excitation: each map times a hard sigmoid of what one linear layer makes of all maps' means.

    Source: Lee and Park, CenterMask (CVPR 2020), section 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc: nn.Conv2d = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class Layer(nn.Module):
    """7x7 depthwise convolution, norm, 1x1, GELU, 1x1 to k maps, [squeeze-excitation,] a learned factor for each map.

    Args:
        channels: input channels.
        growth_rate: k, output channels.
        expansion, layer_scale, drop_rate: as in `RDNet`.
        drop_path: share of images for which it makes nothing in training, 0..1.
        has_squeeze: whether squeeze-excitation follows.
        dilation: of the depthwise convolution.
    """

    def __init__(
        self,
        channels: int,
        growth_rate: int,
        *,
        expansion: float,
        layer_scale: float,
        drop_rate: float,
        drop_path: float,
        has_squeeze: bool,
        dilation: int,
    ) -> None:
        super().__init__()
        width = int(channels * expansion / 8) * 8
        self.gamma: nn.Parameter = nn.Parameter(torch.full((growth_rate,), layer_scale))
        self.radius: int = KERNEL // 2 * dilation
        modules = [
            nn.Conv2d(channels, channels, KERNEL, padding=self.radius, dilation=dilation, groups=channels),
            LayerNorm(channels),
            nn.Conv2d(channels, width, 1),
            nn.GELU(),
            nn.Conv2d(width, growth_rate, 1),
            *([Squeeze(growth_rate)] if has_squeeze else []),
        ]
        self.layers: nn.ModuleDict = nn.ModuleDict(
            {"layers": nn.Sequential(*modules)}
        )  # nested as in timm, for the keys
        self.drop_path: float
        self.drop_rate: float
        self.drop_rate, self.drop_path = drop_rate, drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers["layers"](x) * self.gamma.view(-1, 1, 1)
        if self.training and self.drop_path:
            # Whole images, scaled so that the expectation stays.
            x = F.dropout(x.new_ones(x.shape[0], 1, 1, 1), self.drop_path) * x
        return F.dropout(x, self.drop_rate, self.training)


class KeptConv(nn.Conv2d):
    """The 2x2 convolution of a halving that is left out: zeros at the bottom and right keep the size.

    On every pixel that the halving would have kept it makes what the strided convolution makes.
    """

    def forward(self, x: Tensor) -> Tensor:
        margin = self.dilation[0]
        return super().forward(F.pad(x, (0, margin, 0, margin)))


class Stage(nn.Sequential):
    """[Norm, convolution,] dense block.

    With a policy of "lean" or "min" as its attribute `memory` it keeps nothing but its input for the backward pass, and
    runs a second time there.
    """

    memory = "speed"

    def forward(self, x: Tensor) -> Tensor:
        if self.memory in ("lean", "min") and learns(x, *self.parameters()):
            made: Tensor = checkpoint(self.run, x, use_reentrant=False)
            return made
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """Returns what the children make, one after another."""
        for module in self:
            x = module(x)
        return x


def make_stem(in_channels: int, channels: int) -> nn.Sequential:
    """Returns the stem: a linear map of each 4x4 patch, and a norm."""
    return nn.Sequential(nn.Conv2d(in_channels, channels, PATCH, stride=PATCH), LayerNorm(channels))


def build_stages(
    channels: int,
    growth_rate: Sequence[int],
    block_config: Sequence[int],
    strides: Sequence[int],
    *,
    count: int | None = None,
    squeeze_from: int,
    expansion: float,
    compression: float,
    layer_scale: float,
    drop_rate: float,
    drop_path_rate: float,
    output_stride: int = 2**16,
) -> nn.Sequential:
    """Returns the dense blocks, or the first `count` of them, each behind its transition.

    `channels` are the stem's, `output_stride` is the largest reduction; all else is as in `RDNet`.
    """
    rates = iter(torch.linspace(0, drop_path_rate, sum(block_config), device="cpu").tolist())
    reduction, dilation = PATCH, 1
    stages = nn.Sequential()
    for i, (k, layers, stride) in enumerate(zip(growth_rate, block_config, strides, strict=True)):
        if i == count:
            break
        stage = Stage()
        if i > 0:
            kept = int(channels * compression / 8) * 8
            stage.append(LayerNorm(channels))
            if stride == 2 and 2 * reduction > output_stride:
                stage.append(KeptConv(channels, kept, 2, dilation=dilation))
                dilation *= 2
            else:
                stage.append(nn.Conv2d(channels, kept, stride, stride=stride))
                reduction *= stride
            channels = kept

        def make_layer(c: int, k: int = k, i: int = i, dilation: int = dilation) -> Layer:
            return Layer(
                c,
                k,
                expansion=expansion,
                layer_scale=layer_scale,
                drop_rate=drop_rate,
                drop_path=next(rates),
                has_squeeze=i >= squeeze_from,
                dilation=dilation,
            )

        stage.append(DenseBlock(channels, layers, k, make_layer, layer_name=lambda n: f"dense_block{n - 1}"))
        channels += layers * k
        stages.append(stage)
    return stages


def dense_blocks(stages: nn.Sequential) -> Iterator[DenseBlock]:
    """Yields the dense block of each stage."""
    for stage in stages:
        block = next(reversed(stage._modules.values()))
        assert isinstance(block, DenseBlock)
        yield block


def stage_channels(stages: nn.Sequential) -> list[int]:
    """Returns the channels after each dense block."""
    return [block.out_channels for block in dense_blocks(stages)]


def measure(stages: nn.Sequential) -> int | None:
    """Returns the radius of the last block's output, in input pixels; None if a squeeze-excitation sees all."""
    if any(isinstance(module, Squeeze) for module in stages.modules()):
        return None
    resolution = Fraction(1, PATCH)
    steps: list[tuple[int, Fraction | int]] = [(PATCH - 1, 1)]
    for module in stages.modules():
        if isinstance(module, KeptConv):
            steps.append((module.dilation[0], resolution))
        elif type(module) is nn.Conv2d and module.stride[0] == 2:
            steps.append((1, resolution))
            resolution /= 2
        elif isinstance(module, Layer):
            steps.append((module.radius, resolution))
    return radius(steps)


def init_rdnet_(net: nn.Module) -> None:
    """RDNet: convolutions N(0, sqrt(2 / fan_in)), linear biases 0; all else as torch has it.

    Source: naver-ai/rdnet `rdnet.py`.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

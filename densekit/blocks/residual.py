"""Dense blocks with a fusion convolution and a residual."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from densekit.blocks.dense import DenseBlock
from densekit.blocks.layers import ConvLayer, layer_radii, leaky_relu


class ResidualDenseBlock(nn.Module):
    """Dense block, local feature fusion back to the input's width, plus the input.

    Args:
        num_features: G0, channels in and out.
        num_layers: C, layers of the dense block.
        growth_rate: G.
        fusion_size: kernel of the fusion convolution: 1 in RDN, 3 in RRDB.
        residual_scale: factor on the fused maps: 1 in RDN, 0.2 in RRDB.
        make_layer: the layer, as in `DenseBlock`; the default is 3x3 convolution and ReLU.

    Shapes: (B, num_features, H, W) -> the same.

    Source: Zhang et al., Residual Dense Network (CVPR 2018), section 3.2.
    """

    def __init__(
        self,
        num_features: int,
        num_layers: int,
        growth_rate: int,
        *,
        fusion_size: int = 1,
        residual_scale: float = 1.0,
        make_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        make_layer = make_layer or (lambda channels: ConvLayer(channels, growth_rate))
        self.dense: DenseBlock = DenseBlock(num_features, num_layers, growth_rate, make_layer)
        self.fusion: nn.Conv2d = nn.Conv2d(self.dense.out_channels, num_features, fusion_size, padding=fusion_size // 2)
        self.residual_scale = residual_scale
        self.radius: int = sum(layer_radii(self.dense)) + fusion_size // 2

    def forward(self, x: Tensor) -> Tensor:
        fused = self.fusion(self.dense(x))
        if self.residual_scale != 1.0:
            fused = fused * self.residual_scale
        return fused + x


class PlusDenseBlock(nn.Module):
    """The residual dense block of ESRGAN+: every second layer's maps are added to those of the last such layer.

    The second layer has none before it and adds a 1x1 convolution of the input. What a layer gives is not its own
    maps alone, so the layers are no `DenseBlock`, and memory policies do nothing here.

    Args:
        num_features: nf, channels in and out.
        growth_rate: gc.
        residual_scale: on the fused maps, before the input is added.

    Shapes: (B, num_features, H, W) -> the same.

    Source: Rakotonirina and Rasoanaivo, ESRGAN+ (ICASSP 2020), section 3.1; names as in `ResidualDenseBlock`.
    """

    def __init__(self, num_features: int, growth_rate: int, *, residual_scale: float) -> None:
        super().__init__()
        widths = [num_features + i * growth_rate for i in range(5)]
        self.dense: nn.ModuleDict = nn.ModuleDict(
            {f"denselayer{i + 1}": ConvLayer(width, growth_rate, leaky_relu) for i, width in enumerate(widths[:4])}
        )
        self.shortcut: nn.Conv2d = nn.Conv2d(num_features, growth_rate, 1, bias=False)
        self.fusion: nn.Conv2d = nn.Conv2d(widths[4], num_features, 3, padding=1)
        self.residual_scale = residual_scale
        self.radius = 5

    def forward(self, x: Tensor) -> Tensor:
        features, added = [x], self.shortcut(x)
        for i, layer in enumerate(self.dense.values()):
            y = layer(torch.cat(features, dim=1))
            if i % 2:
                added = y = y + added
            features.append(y)
        return self.fusion(torch.cat(features, dim=1)) * self.residual_scale + x


class RRDB(nn.Module):
    """Residual in residual dense block: three residual dense blocks of four layers, times 0.2, plus the input.

    Args:
        num_features: nf, channels in and out.
        growth_rate: gc.
        residual_scale: on each inner block and on the whole.
        plus: whether the inner blocks are those of ESRGAN+.

    Shapes: (B, num_features, H, W) -> the same.

    Source: Wang et al., ESRGAN (ECCV Workshops 2018), section 3.1; xinntao/ESRGAN `RRDBNet_arch.py`.
    """

    def __init__(
        self, num_features: int = 64, growth_rate: int = 32, *, residual_scale: float = 0.2, plus: bool = False
    ) -> None:
        super().__init__()

        def make_block() -> nn.Module:
            if plus:
                return PlusDenseBlock(num_features, growth_rate, residual_scale=residual_scale)
            return ResidualDenseBlock(
                num_features,
                4,
                growth_rate,
                fusion_size=3,
                residual_scale=residual_scale,
                make_layer=lambda channels: ConvLayer(channels, growth_rate, leaky_relu),
            )

        for i in range(1, 4):
            self.add_module(f"rdb{i}", make_block())
        self.residual_scale = residual_scale
        self.radius: int = sum(layer_radii(self))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.children():
            y = block(y)
        return y * self.residual_scale + x

"""From features to a larger image."""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.errors import ConfigError
from densekit.resize import bicubic_phases


def shuffle_stages(scale: int) -> list[int]:
    """Returns the factors of successive pixel shuffles: twos for 2, 4 and 8, one three for 3.

    Raises:
        ConfigError: another scale.
    """
    stages: list[int] | None = {1: [], 2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}.get(scale)
    if stages is None:
        raise ConfigError(f"scale={scale}: expected 1, 2, 3, 4 or 8")
    return stages


class PixelShuffleTail(nn.Sequential):
    """Sub-pixel upsampling: for each stage a 3x3 convolution to r r features and a pixel shuffle, then a 3x3 output.

    Args:
        in_channels: features coming in.
        out_channels: image channels.
        scale: 1, 2, 3, 4 or 8.
        features: channels between the stages.
        direct: one convolution straight to the r r out_channels of the image and one shuffle; far cheaper.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, scale H, scale W). `steps` is its part of the receptive field.

    Raises:
        ConfigError: another scale.

    Source: Shi et al., ESPCN (CVPR 2016); Lim et al., EDSR (CVPR Workshops 2017).
    """

    def __init__(self, in_channels: int, out_channels: int, scale: int, *, features: int, direct: bool = False) -> None:
        stages = shuffle_stages(scale)
        if direct:
            stages = [scale]
        modules: list[nn.Module] = []
        steps: list[tuple[int, Fraction]] = []
        resolution = Fraction(1)
        for factor in stages:
            width = out_channels if direct else features
            modules += [nn.Conv2d(in_channels, factor**2 * width, 3, padding=1), nn.PixelShuffle(factor)]
            steps.append((1, resolution))
            resolution *= factor
            in_channels = width
        if not direct:
            modules.append(nn.Conv2d(in_channels, out_channels, 3, padding=1))
            steps.append((1, resolution))
        super().__init__(*modules)
        self.steps = steps


class EspcnTail(nn.Sequential):
    """ESPCN's layers with ReLU, then a 3x3 output: 5x5 to 64 maps, 3x3 to 32, 3x3 to r r maps for each image channel.

    Args:
        in_channels: features coming in.
        out_channels: image channels.
        scale: r: 1, 2, 3, 4 or 8.
        shuffle: whether those maps are laid out as pixels; otherwise each is enlarged by repeating its pixels, and the
            output convolution sees all of them.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, scale H, scale W). `steps` is its part of the receptive field.

    Raises:
        ConfigError: another scale.

    Source: idealo/image-super-resolution `ISR/models/rdn.py`, "shuffle" and "ups"; Shi et al., ESPCN (CVPR 2016).
    """

    def __init__(self, in_channels: int, out_channels: int, scale: int, *, shuffle: bool = True) -> None:
        shuffle_stages(scale)  # as a check: ESPCN enlarges at once
        width = scale**2 * out_channels
        super().__init__(
            nn.Conv2d(in_channels, 64, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, width, 3, padding=1),
            nn.PixelShuffle(scale) if shuffle else nn.Upsample(scale_factor=scale, mode="nearest"),
            nn.Conv2d(out_channels if shuffle else width, out_channels, 3, padding=1),
        )
        self.steps: list[tuple[int, Fraction]] = [
            (2, Fraction(1)),
            (1, Fraction(1)),
            (1, Fraction(1)),
            (1, Fraction(scale)),
        ]


class BicubicSkip(nn.Module):
    """The input itself, enlarged by the bicubic kernel that super-resolution benchmarks use (a = -0.5, edges repeated).

    Written as one convolution with a kernel per output phase, so that it commutes with tiling to the last bit, which
    `torch.nn.functional.interpolate` does not: its coordinates, and its kernel, differ.

    Shapes: (B, C, H, W) -> (B, C, scale H, scale W).
    """

    kernels: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        phases = torch.from_numpy(bicubic_phases(scale))
        kernels = torch.einsum("iy,jx->ijyx", phases, phases).reshape(scale**2, 1, *2 * (phases.shape[1],))
        self.register_buffer("kernels", kernels.float(), persistent=False)
        self.scale = scale
        self.radius: int = phases.shape[1] // 2

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = F.pad(x.reshape(batch * channels, 1, height, width), 4 * (self.radius,), mode="replicate")
        x = F.pixel_shuffle(F.conv2d(x, self.kernels.to(x.dtype)), self.scale)
        return x.reshape(batch, channels, self.scale * height, self.scale * width)

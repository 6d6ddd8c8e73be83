"""Judges of super-resolved pictures: logits above 0 for what they take to be real.

They train a network and are no network of a task, so the table of names does not have them.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks.layers import leaky_relu
from densekit.errors import ConfigError


class SpectralConv(nn.Conv2d):
    """A convolution without bias whose weight, as a matrix (out, in k k), is divided by its largest singular value.

    The singular vectors `u` and `v` are found by power iteration: 15 steps at first, then one for each call of
    `iterate`, which whoever trains makes after each step. torch iterates inside each forward pass instead, so that its
    result depends on how many passes there were before; here two passes see one function, and two processes with a
    pass each do what one does in two.

    Source: Miyato et al., Spectral normalization for GANs (ICLR 2018), algorithm 1.
    """

    u: Tensor
    v: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=1, bias=False)
        self.register_buffer("u", torch.zeros(out_channels))
        self.register_buffer("v", F.normalize(torch.randn(in_channels * kernel_size**2), dim=0))
        self.iterate(15)

    @torch.no_grad()
    def iterate(self, count: int = 1) -> None:
        """Brings `u` and `v` nearer to the singular vectors of the weight as it is now."""
        matrix = self.weight.flatten(1)
        for _ in range(count):
            self.u.copy_(F.normalize(matrix @ self.v, dim=0))
            self.v.copy_(F.normalize(matrix.T @ self.u, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        # u' W v as a sum, since autocast would round a matrix product to 8 or 11 bits
        largest = (self.weight.flatten(1) * torch.outer(self.u, self.v)).sum()
        return F.conv2d(x, self.weight / largest, stride=self.stride, padding=self.padding)


class UNetDiscriminator(nn.Module):
    """Judges each pixel: a U-Net of three halvings, its inner convolutions with spectral norm, sums as skips.

    Args:
        in_channels: of the pictures.
        num_features: channels at full resolution; 64 in Real-ESRGAN.

    Shapes: (B, in_channels, H, W) in 0..1 -> logits (B, 1, H, W), for H and W of at least 8. Where they are no
    multiples of 8, the rows that a halving left over are interpolated; the published network fails there.

    Source: Wang et al., Real-ESRGAN (ICCV Workshops 2021), section 3.3; XPixelGroup/BasicSR `UNetDiscriminatorSN`.
    """

    def __init__(self, in_channels: int = 3, num_features: int = 64) -> None:
        super().__init__()
        widths = [num_features * 2**i for i in range(4)]
        pairs = list(itertools.pairwise(widths))
        self.first: nn.Conv2d = nn.Conv2d(in_channels, num_features, 3, padding=1)
        self.downs: nn.ModuleList = nn.ModuleList(SpectralConv(narrow, wide, 4, stride=2) for narrow, wide in pairs)
        self.ups: nn.ModuleList = nn.ModuleList(SpectralConv(wide, narrow, 3) for narrow, wide in reversed(pairs))
        self.body: nn.ModuleList = nn.ModuleList(SpectralConv(num_features, num_features, 3) for _ in range(2))
        self.last: nn.Conv2d = nn.Conv2d(num_features, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = leaky_relu(self.first(x)), []
        for down in self.downs:
            skips.append(x)
            x = leaky_relu(down(x))
        for up in self.ups:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = leaky_relu(up(x)) + skip
        for conv in self.body:
            x = leaky_relu(conv(x))
        return self.last(x)


class VGGDiscriminator(nn.Module):
    """Judges a crop as a whole: convolutions in stages that halve it down to 4..7 pixels, then two linear layers.

    The number of stages follows from the crop: 5 for 128 pixels and 6 for 256, which are the published networks. Other
    sides are averaged to 4 x 4 before the linear layers. Pooling alone, with 5 stages for every crop, would leave 1 x 1
    of a crop of 32 and half of what it is to judge.

    Batch norms use the statistics of the batch at hand and keep none: the network is never used otherwise. So a
    picture is judged beside those of its own pass, real ones beside real and made ones beside made, and logits change
    with the batch; each process and each accumulated pass is a batch of its own.

    Args:
        crop_size: side of the pictures, in pixels.
        in_channels: of the pictures.
        num_features: channels of the first stage; those of the fourth and later are 8 times as many.

    Shapes: (B, in_channels, crop_size, crop_size) in 0..1 -> logits (B, 1).

    Raises:
        ConfigError: a crop of less than 32 pixels.

    Source: Ledig et al., SRGAN (CVPR 2017), figure 4, as in ESRGAN and XPixelGroup/BasicSR `VGGStyleDiscriminator`.
    """

    def __init__(self, crop_size: int = 128, in_channels: int = 3, num_features: int = 64) -> None:
        super().__init__()
        if crop_size < 32:
            raise ConfigError(f"crop_size={crop_size}: the discriminator needs crops of 32 pixels or more")
        stages, channels = [], in_channels
        for stage in range((crop_size // 4).bit_length() - 1):
            width = num_features * min(2**stage, 8)
            stages.append(nn.Conv2d(channels, width, 3, padding=1, bias=stage == 0))
            stages.append(nn.Conv2d(width, width, 4, stride=2, padding=1, bias=False))
            channels = width
        self.convs: nn.ModuleList = nn.ModuleList(stages)
        self.norms: nn.ModuleList = nn.ModuleList(
            nn.BatchNorm2d(conv.out_channels, track_running_stats=False) for conv in stages[1:]
        )
        self.hidden: nn.Linear = nn.Linear(16 * channels, 100)
        self.last: nn.Linear = nn.Linear(100, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.convs
        x = leaky_relu(first(x))
        for conv, norm in zip(others, self.norms, strict=True):
            x = leaky_relu(norm(conv(x)))
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)
        return self.last(leaky_relu(self.hidden(x)))

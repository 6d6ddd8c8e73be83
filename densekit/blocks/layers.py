"""The layers that a dense block connects, and the transition between two blocks.

Every layer maps (B, channels, H, W) to (B, growth_rate, H, W) and says `radius`, the pixels it sees to each side.
`stages` tells the engine how it is made; a layer without it, or without any, is run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks.parts import Stage
from densekit.blocks.recompute import recompute
from densekit.errors import ConfigError, suggest

DROPOUTS = {
    "paper": "after every convolution but the network's first (the paper and its Lua code)",
    "torchvision": "after the 3x3 convolution of each layer only (torchvision, timm)",
}


def check_dropout(dropout: str) -> str:
    """Returns `dropout` if it names a placement.

    Raises:
        ConfigError: it does not.
    """
    if dropout not in DROPOUTS:
        known = ", ".join(DROPOUTS)
        raise ConfigError(f"dropout={dropout!r}: not a dropout placement{suggest(dropout, DROPOUTS)} (known: {known})")
    return dropout


class BottleneckLayer(nn.Module):
    """BN-ReLU-1x1 to bn_size k channels, then BN-ReLU-3x3 to k: the layer of DenseNet-B and -BC.

    Args:
        channels: input channels.
        growth_rate: k, output channels.
        bn_size: width of the bottleneck in units of k; the paper uses 4.
        drop_rate: share of activations set to zero in training, 0..1.
        dropout: where, one of `DROPOUTS`.
        dilation: of the 3x3 convolution.

    Source: Huang et al. 2017, section 3, "Bottleneck layers"; names as in torchvision.
    """

    def __init__(
        self,
        channels: int,
        growth_rate: int,
        *,
        bn_size: int = 4,
        drop_rate: float = 0.0,
        dropout: str = "paper",
        dilation: int = 1,
    ) -> None:
        super().__init__()
        width = bn_size * growth_rate
        self.norm1: nn.BatchNorm2d = nn.BatchNorm2d(channels)
        self.conv1: nn.Conv2d = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2: nn.BatchNorm2d = nn.BatchNorm2d(width)
        self.conv2: nn.Conv2d = nn.Conv2d(width, growth_rate, 3, padding=dilation, dilation=dilation, bias=False)
        self.drop_rate = drop_rate
        self.drop_rate_inside: float = drop_rate if check_dropout(dropout) == "paper" else 0.0
        self.radius = dilation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x), inplace=True))
        x = F.dropout(x, self.drop_rate_inside, self.training)
        x = self.conv2(F.relu(self.norm2(x), inplace=True))
        return F.dropout(x, self.drop_rate, self.training)

    def stages(self) -> list[Stage]:
        inside, behind = (rate * self.training for rate in (self.drop_rate_inside, self.drop_rate))
        return [Stage(self.conv1, self.norm1, drop_rate=inside), Stage(self.conv2, self.norm2, drop_rate=behind)]


class BasicLayer(nn.Module):
    """BN-ReLU-3x3: the layer of the plain DenseNets and, with a bias, of FC-DenseNet.

    Args:
        channels: input channels.
        growth_rate: k, output channels.
        bias: whether the convolution has one (DenseNet: no; FC-DenseNet: yes).
        drop_rate: share of activations set to zero in training, 0..1; element-wise, not per map.
        dilation: of the convolution.

    Source: Huang et al. 2017, section 3, "Composite function"; SimJeg/FC-DenseNet `layers.py`.
    """

    def __init__(
        self, channels: int, growth_rate: int, *, bias: bool = False, drop_rate: float = 0.0, dilation: int = 1
    ) -> None:
        super().__init__()
        self.norm1: nn.BatchNorm2d = nn.BatchNorm2d(channels)
        self.conv1: nn.Conv2d = nn.Conv2d(channels, growth_rate, 3, padding=dilation, dilation=dilation, bias=bias)
        self.drop_rate = drop_rate
        self.radius = dilation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x), inplace=True))
        return F.dropout(x, self.drop_rate, self.training)

    def stages(self) -> list[Stage]:
        return [Stage(self.conv1, self.norm1, drop_rate=self.drop_rate * self.training)]


def relu(x: Tensor) -> Tensor:
    """ReLU in place: the convolution before it does not need its own output."""
    return F.relu(x, inplace=True)


SLOPE = 0.2  # of RRDBNet's leaky ReLU


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2, in place."""
    return F.leaky_relu(x, SLOPE, inplace=True)


class ConvLayer(nn.Module):
    """3x3 convolution with bias, then an activation: the layer of RDN, RRDB and SRDenseNet.

    Source: Zhang et al., Residual Dense Network (CVPR 2018), equation 4.
    """

    def __init__(self, channels: int, growth_rate: int, activation: Callable[[Tensor], Tensor] = relu) -> None:
        super().__init__()
        self.conv: nn.Conv2d = nn.Conv2d(channels, growth_rate, 3, padding=1)
        self.activation = activation
        self.radius = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv(x))

    def stages(self) -> list[Stage]:
        slopes: dict[Callable[[Tensor], Tensor], float] = {relu: 0.0, leaky_relu: SLOPE}
        slope = slopes.get(self.activation)
        return [] if slope is None else [Stage(self.conv, slope=slope)]


class Transition(nn.Module):
    """BN-ReLU-1x1 convolution-dropout-pooling between two dense blocks.

    Args:
        in_channels: m, channels of the block before.
        out_channels: floor(compression m) in DenseNet, m in FC-DenseNet.
        pool: average pooling in DenseNet, max pooling in FC-DenseNet, `nn.Identity()` where a dilated net keeps size.
        bias: whether the convolution has one (DenseNet: no; FC-DenseNet: yes).
        drop_rate: share of activations set to zero in training, 0..1.

    With the policy "min" as its attribute `memory` it keeps nothing but its input for the backward pass.

    Source: Huang et al. 2017, section 3, "Pooling layers" and "Compression"; names as in torchvision.
    """

    def __init__(
        self, in_channels: int, out_channels: int, pool: nn.Module, *, bias: bool = False, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.norm: nn.BatchNorm2d = nn.BatchNorm2d(in_channels)
        self.conv: nn.Conv2d = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.pool = pool
        self.drop_rate = drop_rate
        self.memory = "speed"

    def activate(self, x: Tensor) -> Tensor:
        """The block's output after norm and ReLU: the feature map other networks tap. Shape as `x`."""
        return F.relu(self.norm(x), inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x, is_tapped=False)[1]

    def both(self, x: Tensor, *, is_tapped: bool = True) -> tuple[Tensor, Tensor]:
        """Returns the block's output after norm and ReLU, which counts only if it `is_tapped`, and the transition's."""
        if self.memory == "min":
            found = recompute(self.norm, self.reduce, [self.conv, self.pool], x, is_tapped=is_tapped)
            if found is not None:
                return found
        x = self.activate(x)
        return x, self.reduce(x)

    def reduce(self, x: Tensor) -> Tensor:
        """What follows `activate`: 1x1 convolution, dropout, pooling."""
        return self.pool(F.dropout(self.conv(x), self.drop_rate, self.training))


def layer_radii(block: nn.Module) -> Iterator[int]:
    """Yields the `radius` of each child of a dense block, or of a list of blocks, in order."""
    for layer in block.children():
        yield layer.radius  # type: ignore[misc]

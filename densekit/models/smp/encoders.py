"""Our encoders by SMP's contract: a list of the image and of features at 1/2, 1/4, ... of its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks import init_densenet_, init_he_uniform_
from densekit.errors import ConfigError, suggest
from densekit.models import MODELS, encoder_class
from densekit.models.densenet import DenseNet, DenseNetEncoder
from densekit.models.fc_densenet import FCDenseNet, FCDenseNetEncoder
from densekit.models.network import Network
from densekit.models.part import keep_part
from densekit.models.rdnet import RDNet, RDNetEncoder
from densekit.models.rdnet_stages import init_rdnet_
from densekit.models.statistics import register_statistics

MAX_DEPTH = 5


class SmpEncoder(Network):
    """What SMP asks of an encoder.

    Weights of the whole network load strictly: what lies deeper than the encoder goes is passed over, and so is what
    is not encoder.

    Shapes: (B, in_channels, H, W) -> list of `depth` + 1 features with `out_channels` at 1, 1/2, 1/4, ... of its size,
    none below 1 / output_stride. Constructors take `depth`, the number of halvings; what lies deeper is not built.
    """

    channels: tuple[int, ...]
    multiple_of: int
    receptive_field: Any  # pixels, or None where the encoder sees the whole image
    whole: ClassVar[type[nn.Module]]  # of which the encoder is a part
    first_conv: ClassVar[str]
    initialize: ClassVar[Callable[[nn.Module], None]]

    def announce(self, depth: int, in_channels: int, arguments: dict[str, Any]) -> None:
        """Takes note of what SMP asks for later, and of the arguments that the whole network is built with."""
        self._depth, self._in_channels = depth, in_channels
        self.arguments: dict[str, Any] = {key: value for key, value in arguments.items() if key != "taps"}
        self.register_load_state_dict_pre_hook(pass_over)  # type: ignore[no-untyped-call]

    @property
    def out_channels(self) -> list[int]:
        """Channels of each feature, the image's size first."""
        return [*self.image_channels(self._in_channels), *self.channels]

    @staticmethod
    def image_channels(in_channels: int) -> list[int]:
        """Returns the channels of those features that are the image itself."""
        return [in_channels]

    @property
    def output_stride(self) -> int:
        """The largest reduction."""
        return self.multiple_of

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Replaces the first convolution by one for images of `in_channels`, normalised with mean 0 and std 1.

        With `pretrained` its kernels are those of the old channels: their sum for one channel, else theirs in turn,
        scaled by the ratio of the numbers of channels, as in SMP. Without, they are random.
        """
        if in_channels == self._in_channels:
            return
        old = self.get_submodule(self.first_conv)
        assert isinstance(old, nn.Conv2d)
        has_bias = old.bias is not None
        conv = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=has_bias)  # type: ignore[arg-type]
        conv = conv.to(old.weight)
        type(self).initialize(conv)
        if pretrained:
            kernels = old.weight.detach()
            turns = torch.arange(in_channels, device=kernels.device) % self._in_channels
            scaled = kernels[:, turns] * (self._in_channels / in_channels)
            conv.weight.data = kernels.sum(1, keepdim=True) if in_channels == 1 else scaled
            conv.bias = old.bias
        self.set_submodule(self.first_conv, conv)
        register_statistics(self, in_channels, None, None)
        self._in_channels = in_channels

    def make_dilated(self, output_stride: int) -> None:
        """Does nothing: the constructor has built the dilated network."""


class SmpDenseNet(DenseNetEncoder, SmpEncoder):
    """A DenseNet of 1 to 5 halvings; `arguments` as in `DenseNetEncoder`.

    Raises:
        ConfigError: an impossible depth or argument.
    """

    whole: ClassVar[type[nn.Module]] = DenseNet
    first_conv: ClassVar[str] = "features.conv0"
    initialize: ClassVar[Callable[[nn.Module], None]] = init_densenet_

    def __init__(self, *, depth: int = 5, output_stride: int = 32, in_channels: int = 3, **arguments: Any) -> None:
        check_depth(depth, 1)
        super().__init__(
            in_channels=in_channels, out_indices=tuple(range(depth)), output_stride=output_stride, **arguments
        )
        self.announce(depth, in_channels, arguments)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, *super().forward(x)]


class SmpRDNet(RDNetEncoder, SmpEncoder):
    """An RDNet of 2 to 5 halvings; `arguments` as in `RDNetEncoder`.

    Its stem halves twice at once. At 1/2 stands the image itself, the four pixels of each 2x2 as channels; SMP's own
    adapter has nothing there, which FPN does not take at every depth.

    Raises:
        ConfigError: an impossible depth or argument.
    """

    whole: ClassVar[type[nn.Module]] = RDNet
    first_conv: ClassVar[str] = "stem.0"
    initialize: ClassVar[Callable[[nn.Module], None]] = init_rdnet_

    def __init__(self, *, depth: int = 5, output_stride: int = 32, in_channels: int = 3, **arguments: Any) -> None:
        check_depth(depth, 2)
        super().__init__(
            in_channels=in_channels, out_indices=tuple(range(1, depth)), output_stride=output_stride, **arguments
        )
        self.announce(depth, in_channels, arguments)

    @staticmethod
    def image_channels(in_channels: int) -> list[int]:
        return [in_channels, 4 * in_channels]

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = (side // 2 * 2 for side in x.shape[-2:])
        return [x, F.pixel_unshuffle(x[..., :height, :width], 2), *super().forward(x)]


class SmpFCDenseNet(FCDenseNetEncoder, SmpEncoder):
    """The way down of an FC-DenseNet, of 1 to 5 halvings; `arguments` as in `FCDenseNetEncoder`.

    Its first feature has the image's size and takes the image's place. Of SMP's decoders FPN alone looks there, at a
    depth of 3; the others get what the first block makes through the features below.

    Raises:
        ConfigError: an impossible depth or argument.
    """

    whole: ClassVar[type[nn.Module]] = FCDenseNet
    first_conv: ClassVar[str] = "conv0"
    initialize: ClassVar[Callable[[nn.Module], None]] = init_he_uniform_

    def __init__(self, *, depth: int = 5, output_stride: int = 32, in_channels: int = 3, **arguments: Any) -> None:
        check_depth(depth, 1)
        super().__init__(
            in_channels=in_channels, out_indices=tuple(range(depth + 1)), output_stride=output_stride, **arguments
        )
        self.announce(depth, in_channels, arguments)

    @staticmethod
    def image_channels(in_channels: int) -> list[int]:
        return []


TYPES: dict[type[nn.Module], type[SmpEncoder]] = {
    DenseNetEncoder: SmpDenseNet,
    RDNetEncoder: SmpRDNet,
    FCDenseNetEncoder: SmpFCDenseNet,
}


def pass_over(encoder: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Keeps the encoder's part of weights to be loaded; torch calls it with its own copy of them."""
    assert isinstance(encoder, SmpEncoder)
    keep_part(state, encoder, encoder.whole, encoder.arguments, prefix)


def check_depth(depth: int, least: int) -> None:
    """Passes a depth from `least` to 5.

    Raises:
        ConfigError: it is another.
    """
    if not least <= depth <= MAX_DEPTH:
        raise ConfigError(f"depth={depth}: expected {least} to {MAX_DEPTH}")


def encoder_names() -> list[str]:
    """Returns the encoders that halve the image five times.

    The nets for CIFAR are not among them: they halve it twice, and SMP's decoders ask for three times at the least.
    """
    return [name for name, entry in MODELS.items() if entry.encoder and entry.arguments.get("stem") != "cifar"]


def encoder_arguments(name: str) -> dict[str, Any]:
    """Returns the constructor arguments that an encoder's name stands for.

    Raises:
        ConfigError: no such encoder, or none that decoders can use.
    """
    names = encoder_names()
    if name not in names:
        raise ConfigError(f"encoder={name!r}: not one of {', '.join(names)}{suggest(name, names)}")
    return dict(MODELS[name].arguments)


def encoder_type(name: str) -> type[SmpEncoder]:
    """Returns the class by SMP's contract of an encoder that has one, one of `encoder_names()`."""
    return TYPES[encoder_class(name)]

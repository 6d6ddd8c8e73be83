"""Our DenseNet encoders under the decoders of segmentation_models_pytorch (SMP), imported where one is built."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks import init_densenet_, radius
from densekit.errors import ConfigError, suggest
from densekit.models import MODELS
from densekit.models.densenet import DenseNetEncoder
from densekit.models.network import Network
from densekit.models.statistics import register_statistics


class Decoder(NamedTuple):
    """What there is to know about a decoder of SMP."""

    model: str  # SMP's class
    strides: tuple[int, ...]  # output strides of the encoder that it takes, the default first
    channels: str = "decoder_channels"  # SMP's word for its width; "" where it has none to choose
    stride: str = "output_stride"  # SMP's word for the output stride
    depth: int = 5  # halvings of the encoder that it takes
    steps: tuple[tuple[int, int], ...] = ()  # (radius, reduction) on its longest path; () if it sees all there is
    pooled_norm: str = ""  # the batch norm that gets one value of each picture
    smallest: int = 1  # side of the deepest feature that it needs


OWN_WORD = "encoder_output_stride"
# Two convolutions a level, one in the head, and where nearest neighbours undo the strides of the stem, a pixel of its.
UNET = ((2, 16), (2, 8), (2, 4), (3, 2), (4, 1))
DECODERS: dict[str, Decoder] = {
    "unet": Decoder("Unet", (32, 16, 8), steps=UNET),
    "unetplusplus": Decoder("UnetPlusPlus", (32,), steps=UNET),
    "linknet": Decoder("Linknet", (32,), "", steps=((2, 16), (2, 8), (2, 4), (2, 2), (2, 1))),
    "segformer": Decoder("Segformer", (32, 16, 8), "decoder_segmentation_channels", steps=((1, 32), (1, 4))),
    "fpn": Decoder("FPN", (32,), "decoder_pyramid_channels"),  # its group norms see the whole picture
    "manet": Decoder("MAnet", (32,)),
    "pspnet": Decoder("PSPNet", (8,), "psp_out_channels", depth=3),
    "deeplabv3": Decoder("DeepLabV3", (8, 16), stride=OWN_WORD, pooled_norm="aspp.convs.4.2"),
    "deeplabv3plus": Decoder("DeepLabV3Plus", (16, 8), stride=OWN_WORD, pooled_norm="aspp.0.convs.4.2"),
    "pan": Decoder("PAN", (16, 32), stride=OWN_WORD, pooled_norm="fpa.branch1.1.bn", smallest=8),
    "upernet": Decoder("UPerNet", (32, 16, 8), pooled_norm="psp.blocks.0.1.1"),
}


class EncoderDecoder(Network):
    """A segmentation network: a DenseNet encoder of ours, and a decoder and head of SMP.

    Its parameters have the names of SMP's own networks with torchvision's DenseNets, whose weights fit. The features
    are the same but for the deepest, which is rectified here, as the others are, and not there.

    Args:
        num_classes: channels of the logits; 1 for foreground against background.
        decoder: one of `DECODERS`.
        encoder: one of `encoder_names()`.
        output_stride: 8, 16 or 32, the largest reduction of the encoder; None takes the decoder's usual one.
        decoder_channels: width of the decoder: one number, or five for unet, unetplusplus and manet; None takes SMP's.
        in_channels: of the images.
        growth_rate, block_config, num_init_features: of the encoder, where they are to differ from its name's.
        drop_rate: share of the encoder's activations set to zero in training, 0..1.
        mean, std: per channel, subtracted from and divided into the image in 0..1; they are part of the model.

    Shapes: (B, in_channels, H, W) in 0..1 -> logits (B, num_classes, H, W), any H and W: the image is continued at the
    bottom and right by its last row and column to multiples of `multiple_of`, the logits are cropped back.
    `receptive_field` is a bound; it is None where a decoder pools the whole image, or has group norms.

    Raises:
        ConfigError: no such decoder or encoder, or an output stride or width that it does not take; when called, a
            batch of one whose pooled value a batch norm is to normalise in training.

    Source: Iakubovskii, segmentation_models_pytorch; the decoders' papers are named there.
    """

    scale = 1
    mean: Tensor
    std: Tensor
    encoder: SmpEncoder
    decoder: nn.Module
    segmentation_head: nn.Module

    def __init__(
        self,
        num_classes: int = 11,
        *,
        decoder: str = "unet",
        encoder: str = "densenet121",
        output_stride: int | None = None,
        decoder_channels: int | Sequence[int] | None = None,
        in_channels: int = 3,
        growth_rate: int | None = None,
        block_config: Sequence[int] | None = None,
        num_init_features: int | None = None,
        drop_rate: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise ConfigError(f"decoder={decoder!r}: not one of {', '.join(DECODERS)}{suggest(decoder, DECODERS)}")
        kind = DECODERS[decoder]
        stride = kind.strides[0] if output_stride is None else output_stride
        if stride not in kind.strides:
            known = " or ".join(map(str, sorted(kind.strides)))
            raise ConfigError(f"output_stride={output_stride}: {decoder} takes {known}")
        if decoder_channels is not None and not kind.channels:
            raise ConfigError(f"decoder_channels: {decoder} has no width to choose; remove it")
        register_statistics(self, in_channels, mean, std)
        own = {"growth_rate": growth_rate, "block_config": block_config, "num_init_features": num_init_features}
        given = {key: value for key, value in own.items() if value is not None}
        arguments: dict[str, Any] = encoder_arguments(encoder) | given
        make_encoder = partial(SmpEncoder, **arguments, in_channels=in_channels, drop_rate=drop_rate)
        width = {} if decoder_channels is None else {kind.channels: decoder_channels}
        net = create_smp(kind, make_encoder, stride, in_channels=in_channels, classes=num_classes, **width)
        self.encoder, self.decoder, self.segmentation_head = net.encoder, net.decoder, net.segmentation_head
        self.decoder_name, self.pooled_norm = decoder, kind.pooled_norm
        self.multiple_of = self.encoder.multiple_of
        self.min_size = kind.smallest * self.multiple_of
        steps = [(r, Fraction(1, reduction)) for r, reduction in ((self.encoder.receptive_field, 1), *kind.steps)]
        self.receptive_field = radius(steps) if kind.steps else None

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if len(x) == 1 and self.pooled_norm and self.decoder.get_submodule(self.pooled_norm).training:
            raise ConfigError(
                f"{self.decoder_name} pools each image to one value of a channel, and batch statistics of one value do "
                "not exist; give it at least 2 images at a time (train.batch_size)"
            )
        x = (x - self.mean) / self.std
        bottom, right = (max(-side % self.multiple_of, self.min_size - side) for side in (height, width))
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        return self.segmentation_head(self.decoder(self.encoder(x)))[..., :height, :width]


class SmpEncoder(DenseNetEncoder):
    """A DenseNet encoder by SMP's contract: `smp.Unet("densekit-densenet121", encoder_weights=None)` after `register`.

    Args:
        depth: halvings, 1 to 5; what lies deeper is not built.
        output_stride, in_channels, arguments: as in `DenseNetEncoder`.

    Shapes: (B, in_channels, H, W) -> list of the image itself and `depth` features with `out_channels`, at 1/2, 1/4,
    ... of its size, none below 1 / output_stride.

    Raises:
        ConfigError: an impossible depth or argument.
    """

    def __init__(self, *, depth: int = 5, output_stride: int = 32, in_channels: int = 3, **arguments: Any) -> None:
        if not 1 <= depth <= 5:
            raise ConfigError(f"depth={depth}: expected 1 to 5")
        super().__init__(
            in_channels=in_channels, out_indices=tuple(range(depth)), output_stride=output_stride, **arguments
        )
        self._depth, self._in_channels, self._output_stride = depth, in_channels, output_stride
        self._out_channels = [in_channels, *self.channels]

    @property
    def out_channels(self) -> list[int]:
        """Channels of the image and of each feature."""
        return self._out_channels

    @property
    def output_stride(self) -> int:
        """The largest reduction."""
        return self.multiple_of

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, *super().forward(x)]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Replaces the first convolution by one for images of `in_channels`, normalised with mean 0 and std 1.

        With `pretrained` its kernels are those of the old channels: their sum for one channel, else theirs in turn,
        scaled by the ratio of the numbers of channels, as in SMP. Without, they are random.
        """
        if in_channels == self._in_channels:
            return
        old = self.features.conv0
        assert isinstance(old, nn.Conv2d)
        conv = nn.Conv2d(in_channels, old.out_channels, 7, stride=2, padding=3, bias=False).to(old.weight)
        init_densenet_(conv)
        if pretrained:
            kernels = old.weight.detach()
            turns = torch.arange(in_channels, device=kernels.device) % self._in_channels
            scaled = kernels[:, turns] * (self._in_channels / in_channels)
            conv.weight.data = kernels.sum(1, keepdim=True) if in_channels == 1 else scaled
        self.features.conv0 = conv
        register_statistics(self, in_channels, None, None)
        self._in_channels, self._out_channels[0] = in_channels, in_channels

    def make_dilated(self, output_stride: int) -> None:
        """Does nothing: the constructor has built the dilated network."""


def encoder_names() -> list[str]:
    """Returns the encoders that halve the image at their first convolution, as SMP's decoders ask for."""
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


def register() -> None:
    """Puts our encoders into SMP's table as "densekit-densenet121" and so on, for every network of SMP."""
    import segmentation_models_pytorch as smp

    for name in encoder_names():
        smp.encoders.encoders[f"densekit-{name}"] = entry_for(partial(SmpEncoder, **encoder_arguments(name)))


def entry_for(make_encoder: Callable[..., SmpEncoder]) -> dict[str, Any]:
    """Returns an entry of SMP's table of encoders, without weights to download."""
    return {"encoder": make_encoder, "params": {}, "pretrained_settings": {}}


def create_smp(kind: Decoder, make_encoder: Callable[..., SmpEncoder], output_stride: int, **arguments: Any) -> Any:
    """Returns a network of SMP over an encoder that is in SMP's table, under a name of its own, only meanwhile."""
    import segmentation_models_pytorch as smp

    name = f"densekit-{uuid.uuid4().hex}"
    smp.encoders.encoders[name] = entry_for(make_encoder)
    try:
        return getattr(smp, kind.model)(
            name, encoder_weights=None, encoder_depth=kind.depth, **{kind.stride: output_stride}, **arguments
        )
    finally:
        del smp.encoders.encoders[name]

"""A segmentation network: one of our encoders under a decoder of SMP."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks import radius
from densekit.errors import ConfigError, suggest
from densekit.models import constructor_arguments, encoder_class
from densekit.models.network import Network
from densekit.models.smp.encoders import SmpEncoder, encoder_arguments, encoder_type
from densekit.models.statistics import register_statistics, standardized


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
    """A segmentation network: an encoder of ours, and a decoder and head of SMP.

    Its parameters have the names of SMP's own networks with torchvision's DenseNets, whose weights fit. With
    `taps="smp"` so do the features, and the logits are SMP's; else the deepest is rectified, as the others are.

    Args:
        num_classes: channels of the logits; 1 for foreground against background.
        decoder: one of `DECODERS`.
        encoder: one of `encoder_names()`.
        output_stride: 8, 16 or 32, the largest reduction of the encoder; None takes the decoder's usual one.
        decoder_channels: width of the decoder: one number, or five for unet, unetplusplus and manet; None takes SMP's.
        in_channels: of the images.
        growth_rate, block_config, num_init_features, taps: of the encoder, where they are to differ from its name's and
            it has them.
        drop_rate: share of the encoder's activations set to zero in training, 0..1.
        mean, std: per channel, subtracted from and divided into the image in 0..1; they are part of the model.

    Shapes: (B, in_channels, H, W) in 0..1 -> logits (B, num_classes, H, W), any H and W: the image is continued at the
    bottom and right by its last row and column to multiples of `multiple_of`, the logits are cropped back.
    `receptive_field` is a bound; it is None where encoder or decoder pools the whole image, or has group norms.

    Raises:
        ConfigError: no such decoder or encoder, or an argument that it does not take; when called, a batch of one whose
            pooled value a batch norm is to normalise in training.

    Source: Iakubovskii, segmentation_models_pytorch; the decoders' papers are named there.
    """

    output_name = "segmentation_head"
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
        growth_rate: int | Sequence[int] | None = None,
        block_config: Sequence[int] | None = None,
        num_init_features: int | None = None,
        taps: str | None = None,
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
        arguments, encoder_kind = encoder_arguments(encoder), encoder_type(encoder)
        own = {
            "growth_rate": growth_rate,
            "block_config": block_config,
            "num_init_features": num_init_features,
            "taps": taps,
        }
        for key, value in own.items():
            if value is not None and key not in constructor_arguments(encoder_class(encoder)):
                raise ConfigError(f"{key}: {encoder} takes no such argument; remove it")
            arguments |= {} if value is None else {key: value}
        make_encoder = partial(encoder_kind, **arguments, in_channels=in_channels, drop_rate=drop_rate)
        width = {} if decoder_channels is None else {kind.channels: decoder_channels}
        net = create_smp(kind, make_encoder, stride, in_channels=in_channels, classes=num_classes, **width)
        self.encoder, self.decoder, self.segmentation_head = net.encoder, net.decoder, net.segmentation_head
        self.decoder_name: str
        self.pooled_norm: str
        self.decoder_name, self.pooled_norm = decoder, kind.pooled_norm
        self.multiple_of: int = self.encoder.multiple_of
        self.min_size: int = kind.smallest * self.multiple_of
        seen = self.encoder.receptive_field
        steps = [(r, Fraction(1, reduction)) for r, reduction in kind.steps]
        self.receptive_field: int | None = radius([(seen, 1), *steps]) if steps and seen is not None else None

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        pools = self.pooled_norm and self.decoder.get_submodule(self.pooled_norm).training
        if pools and x.shape[0] == 1:  # asked for last: an exported graph is to take any number of images
            raise ConfigError(
                f"{self.decoder_name} pools each image to one value of a channel, and batch statistics of one value do "
                "not exist; give it at least 2 images at a time (train.batch_size)"
            )
        x = standardized(self, x)
        bottom, right = (max(-side % self.multiple_of, self.min_size - side) for side in (height, width))
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        return self.segmentation_head(self.decoder(self.encoder(x)))[..., :height, :width]


def create_smp(kind: Decoder, make_encoder: Callable[..., SmpEncoder], output_stride: int, **arguments: Any) -> Any:
    """Returns a network of SMP over an encoder that is in SMP's table, under a name of its own, only meanwhile."""
    import segmentation_models_pytorch as smp

    name = f"densekit-{uuid.uuid4().hex}"
    smp.encoders.encoders[name] = {"encoder": make_encoder, "params": {}, "pretrained_settings": {}}
    try:
        return getattr(smp, kind.model)(
            name, encoder_weights=None, encoder_depth=kind.depth, **{kind.stride: output_stride}, **arguments
        )
    finally:
        del smp.encoders.encoders[name]

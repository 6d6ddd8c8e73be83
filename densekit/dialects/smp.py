"""Whole segmentation networks of segmentation_models_pytorch (SMP) over torchvision's and timm's DenseNets.

Our names are SMP's. Over timm's extractor ("tu-densenet121") the encoder has other names and other features: outputs of
blocks as they are, the deepest rectified. Over torchvision's they are rectified, and the deepest is not.

Names do not tell a network over one of our encoders in SMP's table ("densekit-densenet121") from one over SMP's own; it
is taken for the latter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from densekit.cards import Card
from densekit.dialects import densenet
from densekit.dialects.describing import implied_arguments
from densekit.dialects.dialect import Dialect, Tensors, Translation, rename
from densekit.errors import CheckpointError
from densekit.models import MODELS, create_model

ENCODER, DECODER, HEAD = "encoder.", "decoder.", "segmentation_head.0.weight"
NORMED = r"(?:0\.weight|1\.\w+)"  # a convolution and its norm


class Layout(NamedTuple):
    """How a decoder of SMP is known by its names."""

    names: str  # pattern of all of them
    widths: tuple[str, ...]  # layers whose outputs are its `decoder_channels`
    marks: tuple[str, ...] = ()  # other layers, which no decoder for an encoder of fewer halvings has
    is_shallow: bool = False  # it looks at the first two dense blocks alone


LEVELS = range(5)
LAYOUTS = {
    "unet": Layout(rf"blocks\.[0-4]\.conv[12]\.{NORMED}", tuple(f"blocks.{i}.conv1.0" for i in LEVELS)),
    "unetplusplus": Layout(
        rf"blocks\.x_[0-3]_[0-4]\.conv[12]\.{NORMED}", tuple(f"blocks.x_0_{i}.conv1.0" for i in LEVELS)
    ),
    "manet": Layout(
        rf"center\.\w+\.\w+|blocks\.[0-4]\.(?:(?:conv[12]|hl_conv\.[01])\.{NORMED}|SE_[hl]l\.[13]\.\w+)",
        tuple(f"blocks.{i}.conv1.0" for i in LEVELS),
        ("blocks.3.SE_ll.1",),
    ),
    "linknet": Layout(r"blocks\.[0-4]\.block\.[012]\.[01]\.\w+", (), ("blocks.4.block.0.0",)),
    "fpn": Layout(r"p5\.\w+|p[234]\.skip_conv\.\w+|seg_blocks\.[0-3]\.block\.[012]\.block\.[01]\.\w+", ("p5",)),
    "pspnet": Layout(
        rf"psp\.blocks\.[0-3]\.pool\.1\.[01]\.\w+|conv\.{NORMED}", ("conv.0",), ("psp.blocks.3.pool.1.0",), True
    ),
    "upernet": Layout(
        rf"feature_norms\.[0-3]\.\w+|(?:psp\.blocks\.[0-3]\.1|psp\.out_conv|fpn_lateral_blocks\.[012]\.conv_norm_relu|"
        rf"fpn_conv_blocks\.[012]|fusion_block)\.{NORMED}",
        ("fusion_block.0",),
        ("feature_norms.3",),
    ),
    "segformer": Layout(
        rf"mlp_stage\.[0-4]\.linear\.\w+|fuse_stage\.{NORMED}", ("fuse_stage.0",), ("mlp_stage.4.linear",)
    ),
    "pan": Layout(r"(?:fpa|gau[123])\.[\w.]+\.(?:conv|bn)\.\w+", ("fpa.branch1.1.conv",), ("gau3.conv2.conv",)),
}
DEEPER = re.compile(r"encoder\.features\.(?:denseblock[34]|transition2\.conv|transition3|norm5)\.")  # than two blocks
AUXILIARY = "classification_head."
STRIDE, SHALLOW_STRIDE = 32, 8  # of SMP's DenseNets, which it does not dilate
ASSUMED = (
    "weights do not tell the output stride, which is {} with every DenseNet of SMP, nor how the decoder interpolates, "
    "for which SMP's default is taken; the network gives logits, without an activation"
)
NORMALIZED = (
    "pictures for SMP are usually normalised by ImageNet's mean and standard deviation outside of the network, which "
    "weights do not show; where these were, convert with --normalize imagenet"
)


def describe(tensors: Tensors, hints: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name and arguments of the network whose weights these are; of its encoder, `hints` tell."""
    decoder = _decoder_of(tensors)
    assert decoder is not None, "a dialect has recognised it"
    widths = [len(tensors[f"{DECODER}{layer}.weight"]) for layer in LAYOUTS[decoder].widths]
    arguments = {"num_classes": len(tensors[HEAD]), **hints}
    if widths:
        arguments["decoder_channels"] = widths if len(widths) > 1 else widths[0]
    if decoder == "pan":  # ours would dilate its encoder
        arguments["output_stride"] = STRIDE
    return decoder, arguments


def _decoder_of(names: Iterable[str]) -> str | None:
    """Returns the decoder that has these names, or None for one with parts that ours lack, such as attention."""
    own = {name.removeprefix(DECODER) for name in names if name.startswith(DECODER)}
    for decoder, layout in LAYOUTS.items():
        layers = (*layout.widths, *layout.marks)
        if all(f"{layer}.weight" in own for layer in layers) and all(re.fullmatch(layout.names, n) for n in own):
            return decoder
    return None


def _is_smp(before: str, tensors: Mapping[str, Tensor]) -> bool:
    layers = ("conv0", "denseblock1.denselayer1.conv1", "norm5")
    return (
        HEAD in tensors and all(f"{before}{layer}.weight" in tensors for layer in layers) and bool(_decoder_of(tensors))
    )


def _to_ours(before: str, taps: str, tensors: Tensors) -> Translation:
    """Names weights as ours, and gives what tells of the encoder as hints.

    Args:
        before: what stands in front of the names of the encoder's layers.
        taps: the features that it gives.
        tensors: as in the file.

    Raises:
        CheckpointError: an encoder that is no DenseNet of ours.
    """
    decoder = _decoder_of(tensors)
    assert decoder is not None, "recognised"
    is_shallow = LAYOUTS[decoder].is_shallow
    inside = len(ENCODER)
    named = rename(
        {name: t for name, t in tensors.items() if not name.startswith(AUXILIARY)},
        lambda name: re.sub(f"^{re.escape(before)}", f"{ENCODER}features.", name),
    )
    encoder = {name[inside:]: tensor for name, tensor in named.tensors.items() if name.startswith(ENCODER)}
    hints = {**_encoder_arguments(encoder), "taps": taps}
    ignored = {name: "a classifier beside the decoder" for name in tensors if name.startswith(AUXILIARY)}
    ours = named.tensors
    if is_shallow:
        ignored |= {name: f"deeper than {decoder} looks" for name in ours if DEEPER.match(name)}
        ours = {name: tensor for name, tensor in ours.items() if name not in ignored}
    notes = [ASSUMED.format(SHALLOW_STRIDE if is_shallow else STRIDE)]
    if "in_channels" not in hints:
        notes.append(NORMALIZED)
    return replace(named, tensors=ours, ignored=ignored, hints=hints, notes=tuple(notes))


def _encoder_arguments(tensors: Tensors) -> dict[str, Any]:
    """Returns the encoder's name and what it does not imply, as arguments of the whole network.

    Raises:
        CheckpointError: it is no DenseNet of ours, or one that decoders here are not built over.
    """
    name, found = densenet.describe(tensors, {})
    for key in ("bn_size", "compression", "stem"):
        if key in found:
            raise CheckpointError(f"an encoder with {key} {found[key]}; decoders here have DenseNets with the default")
    return {"encoder": name, **{key: value for key, value in found.items() if key != "num_classes"}}


def _to_theirs(dialect: str, before: str, taps: str, tensors: Tensors, card: Card) -> Tensors:
    """Names weights as SMP does; what its encoder has beyond the reach of a decoder, and never uses, is filled in.

    Raises:
        CheckpointError: a network that SMP does not build.
    """
    from densekit.models.smp import DECODERS  # which imports SMP

    arguments = {**implied_arguments(card.model), **card.arguments}
    decoder, name = arguments["decoder"], arguments["encoder"]
    if MODELS[name].target != densenet.TARGET:
        raise CheckpointError(f"networks of {dialect} have a DenseNet as encoder, but this one has {name}; not written")
    if decoder not in LAYOUTS or (LAYOUTS[decoder].is_shallow and taps != "smp"):
        raise CheckpointError(f"networks of {dialect} have no such decoder as {decoder} over DenseNets; not written")
    keys = ("growth_rate", "block_config", "num_init_features", "in_channels")
    encoder = {key: arguments[key] for key in keys if arguments[key] is not None}
    found = {**densenet.implied(name), **encoder}
    is_shallow = LAYOUTS[decoder].is_shallow
    stride = SHALLOW_STRIDE if is_shallow else STRIDE
    limits = [
        (f"taps {taps!r}", (arguments["taps"] or "act") == taps),
        (f"an output stride of {stride}", (arguments["output_stride"] or DECODERS[decoder].strides[0]) == stride),
        (densenet.FOUR[0], densenet.FOUR[1](found)),
        (densenet.TWICE[0], taps == "smp" or densenet.TWICE[1](found)),
    ]
    lacking = [text for text, holds in limits if not holds]
    if lacking:
        raise CheckpointError(f"networks of {dialect} have {lacking[0]}, but this one has not; not written")
    theirs = {re.sub(r"^encoder\.features\.", before, key): tensor for key, tensor in tensors.items()}
    return {**theirs, **_unused(name, encoder)} if is_shallow else theirs


def _unused(name: str, arguments: Mapping[str, Any]) -> Tensors:
    """Returns zeros for the layers of an encoder that a shallow decoder does not look at."""
    with torch.device("meta"):
        whole = create_model(name, num_classes=0, **arguments).state_dict()
    named = {f"{ENCODER}{key}": tensor for key, tensor in whole.items()}
    return {key: torch.zeros(t.shape, dtype=t.dtype) for key, t in named.items() if DEEPER.match(key)}


def _dialect(name: str, before: str, taps: str) -> Dialect:
    return Dialect(
        name,
        "smp",
        partial(_is_smp, before),
        partial(_to_ours, before, taps),
        partial(_to_theirs, name, before, taps),
    )


DIALECTS: tuple[Dialect, ...] = (
    _dialect("smp", "encoder.features.", "smp"),
    _dialect("smp-timm", "encoder.model.features_", "raw"),
)

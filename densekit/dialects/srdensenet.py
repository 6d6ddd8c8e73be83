"""SRDenseNet in the words of yjn870 and of twtygqyy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from densekit.cards import Card
from densekit.dialects.dialect import Dialect, Tensors, Translation
from densekit.dialects.naming import Rows, count
from densekit.errors import CheckpointError

DECONVS = tuple((f"deconv.{2 * i}", f"deconvs.{i}") for i in range(3))  # an activation follows each
YJN870 = Rows(
    ("conv.conv", "low_level.conv"),
    ("dense_blocks.{b}.block.0.conv", "blocks.denselayer{b+1}.first.conv"),
    ("dense_blocks.{b}.block.{l}.conv", "blocks.denselayer{b+1}.dense.denselayer{l}.conv"),
    ("bottleneck.0", "bottleneck"),
    *DECONVS,
    ("reconstruction", "reconstruction"),
)
TWTYGQYY = Rows(
    ("lowlevel", "low_level.conv"),
    ("denseblock{b}.0.conv1", "blocks.denselayer{b}.first.conv"),
    ("denseblock{b}.0.conv{l+1}", "blocks.denselayer{b}.dense.denselayer{l}.conv"),
    ("bottleneck", "bottleneck"),
    *DECONVS,
    ("reconstruction", "reconstruction"),
)
SLOPES = ("relu.weight", "denseblock1.0.relu.weight")


def describe(tensors: Tensors, hints: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name and arguments of the SRDenseNet whose weights these are, all deconvolutions of stride 2."""
    num_features, in_channels = tensors["low_level.conv.weight"].shape[:2]
    deconv = tensors["deconvs.0.weight"]
    return "srdensenet", {
        "scale": 2 ** count(tensors, "deconvs."),
        "in_channels": in_channels,
        "out_channels": len(tensors["reconstruction.weight"]),
        "num_features": num_features,
        "num_blocks": count(tensors, "blocks.denselayer"),
        "num_layers": 1 + count(tensors, "blocks.denselayer1.dense.denselayer"),
        "growth_rate": len(tensors["blocks.denselayer1.first.conv.weight"]),
        "bottleneck_features": len(deconv),
        "deconv_size": deconv.shape[-1],
        "tail_bias": "bottleneck.bias" in tensors,
        **hints,
    }


def _is_yjn870(tensors: Mapping[str, Tensor]) -> bool:
    return all(f"{layer}.weight" in tensors for layer in ("conv.conv", "dense_blocks.0.block.0.conv", "bottleneck.0"))


def _is_twtygqyy(tensors: Mapping[str, Tensor]) -> bool:
    return all(f"{layer}.weight" in tensors for layer in ("lowlevel", "denseblock1.0.conv1", "bottleneck", "deconv.0"))


def _from_yjn870(tensors: Tensors) -> Translation:
    _check_deconvs(tensors)
    return replace(YJN870.translate(tensors), hints={"bottleneck_activation": True})


def _from_twtygqyy(tensors: Tensors) -> Translation:
    if any(name in tensors for name in SLOPES):
        raise CheckpointError(
            "an SRDenseNet with PReLU, whose code puts most maps through their slope twice, which no network here "
            "does; expected twtygqyy's with ReLU"
        )
    _check_deconvs(tensors)
    return replace(TWTYGQYY.translate(tensors), hints={"bottleneck_activation": False})


def _check_deconvs(tensors: Tensors) -> None:
    """Passes two transposed convolutions, as both codes have them; what lost one would load as a network for x2.

    Raises:
        CheckpointError: more or fewer.
    """
    found = count(tensors, "deconv.", ".weight")
    if found != 2:
        raise CheckpointError(f"an SRDenseNet with {found} transposed convolutions; expected 2")


def _to_yjn870(tensors: Tensors, card: Card) -> Tensors:
    _check(tensors, card, "yjn870", deconv_size=3, has_biases=True)
    return YJN870.theirs(tensors)


def _to_twtygqyy(tensors: Tensors, card: Card) -> Tensors:
    _check(tensors, card, "twtygqyy", deconv_size=2, has_biases=False)
    return TWTYGQYY.theirs(tensors)


def _check(tensors: Tensors, card: Card, name: str, *, deconv_size: int, has_biases: bool) -> None:
    """Passes a network of the kind that a dialect's code builds: with biases and a ReLU in its bottleneck, or neither.

    Raises:
        CheckpointError: another.
    """
    kernel = tensors["deconvs.0.weight"].shape[-1]
    found = count(tensors, "deconvs."), kernel, "bottleneck.bias" in tensors
    acts = card.arguments.get("bottleneck_activation", True)
    if found != (2, deconv_size, has_biases) or acts != has_biases:
        raise CheckpointError(
            f"networks of {name} enlarge twice by kernels of {deconv_size}, {'with' if has_biases else 'without'} "
            "biases behind the dense blocks and an activation in the bottleneck, and this one does not"
        )


DIALECTS = (
    Dialect("yjn870", "srdensenet", _is_yjn870, _from_yjn870, _to_yjn870),
    Dialect("twtygqyy", "srdensenet", _is_twtygqyy, _from_twtygqyy, _to_twtygqyy),
)

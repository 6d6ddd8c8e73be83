"""RDN in the words of others: yjn870's, which mmagic shares, EDSR-PyTorch's family, and idealo's for Keras."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from densekit.cards import Card
from densekit.dialects.dialect import Dialect, Tensors, Translation
from densekit.dialects.naming import Rows, count
from densekit.errors import CheckpointError

YJN870 = (
    ("sfe1", "sfe1"),
    ("sfe2", "sfe2"),
    ("rdbs.{d}.layers.{c}.conv", "blocks.{d}.dense.denselayer{c+1}.conv"),
    ("rdbs.{d}.lff", "blocks.{d}.fusion"),
    ("gff.{n}", "gff.{n}"),
    ("upscale.{n}", "tail.{n}"),
)
EDSR = Rows(
    ("SFENet{n}", "sfe{n}"),
    ("RDBs.{d}.convs.{c}.conv.0", "blocks.{d}.dense.denselayer{c+1}.conv"),
    ("RDBs.{d}.LFF", "blocks.{d}.fusion"),
    ("GFF.{n}", "gff.{n}"),
    ("UPNet.{n}", "tail.{n}"),
)
IDEALO = Rows(
    ("F_m1", "sfe1"),
    ("F_0", "sfe2"),
    ("F_{d+1}_{c}", "blocks.{d}.dense.denselayer{c}.conv"),
    ("LFF_{d+1}", "blocks.{d}.fusion"),
    ("GFF_{n+1}", "gff.{n}"),
    ("UPN1", "tail.0"),
    ("UPN2", "tail.2"),
    ("UPN3", "tail.4"),
    ("SR", "tail.6"),
)
WIDTHS = ("pixelshuffle", "pixelshuffle_growth")  # the same where num_features and growth_rate are
NAMES = {"/kernel": ".weight", "/bias": ".bias"}
LAST_BEFORE_SHUFFLE = ("tail.4.weight", "tail.4.bias")
EDSR_RANGE = (
    "EDSR-PyTorch trains on values in 0..255 unless told otherwise, which weights do not show; densekit gives 0..1, so "
    "where results are flat or black, convert with --value-range 255"
)


def describe(tensors: Tensors, hints: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name and arguments of the RDN whose weights these are.

    Raises:
        CheckpointError: without an upsampler.
    """
    num_features, in_channels = tensors["sfe1.weight"].shape[:2]
    growth_rate = len(tensors["blocks.0.dense.denselayer1.conv.weight"])
    tail = tail_weights(tensors)
    if len(tail) < 2:
        raise CheckpointError(
            "an RDN without an upsampler, as in LIIF and Meta-SR, which enlarges nothing; expected a whole RDN"
        )
    widths = [weight.shape[1] for weight in tail[1:]]  # what each convolution's maps are after the shuffle
    factors = [math.isqrt(len(weight) // width) for weight, width in zip(tail, widths, strict=False)]
    upsampler = "pixelshuffle" if widths[0] == num_features else "pixelshuffle_growth"
    return "rdn", {
        "scale": math.prod(factors),
        "in_channels": in_channels,
        "out_channels": len(tail[-1]),
        "num_features": num_features,
        "num_blocks": count(tensors, "blocks."),
        "num_layers": count(tensors, "blocks.0.dense.denselayer"),
        "growth_rate": growth_rate,
        "upsampler": upsampler,
        **hints,
    }


def tail_weights(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Returns the kernels of the upsampler, in order."""
    names = [name for name in tensors if name.startswith("tail.") and name.endswith(".weight")]
    return [tensors[name] for name in sorted(names, key=lambda name: int(name.split(".")[1]))]


def _has(*names: str) -> Callable[[Mapping[str, Tensor]], bool]:
    return lambda tensors: all(name in tensors for name in names)


def _yjn870(num_convs: int) -> Rows:
    """Returns the rows of yjn870's names, whose output convolution is the last of `num_convs` in our tail."""
    return Rows(("output", f"tail.{2 * (num_convs - 1)}"), *YJN870)


def _from_yjn870(tensors: Tensors) -> Translation:
    return _yjn870(count(tensors, "upscale.") + 1).translate(tensors)


def _to_yjn870(tensors: Tensors, card: Card) -> Tensors:
    _check(tensors, card, "yjn870", "pixelshuffle")
    if len(tensors["blocks.0.dense.denselayer1.conv.weight"]) != len(tensors["sfe1.weight"]):
        raise CheckpointError("networks of yjn870 have growth_rate and num_features equal, and this one has not")
    return _yjn870(len(tail_weights(tensors))).theirs(tensors)


def _from_edsr(tensors: Tensors) -> Translation:
    return replace(EDSR.translate(tensors), notes=(EDSR_RANGE,))


def _to_edsr(tensors: Tensors, card: Card) -> Tensors:
    _check(tensors, card, "edsr", "pixelshuffle_growth")
    return EDSR.theirs(tensors)


def _from_idealo(tensors: Tensors) -> Translation:
    """Turns kernels (H, W, in, out) round, and what Keras lays out as pixels, channels last, into torch's order."""
    dotted = {name: re.sub(r"/(kernel|bias)$", lambda match: NAMES[match[0]], name) for name in tensors}
    turned = {dotted[name]: _from_kernel(tensor) for name, tensor in tensors.items()}
    found = IDEALO.translate(turned)
    ours = found.tensors
    width, out_channels = len(ours["tail.4.weight"]), len(ours["tail.6.weight"])
    shuffles = ours["tail.6.weight"].shape[1] == out_channels
    if shuffles:
        for name in LAST_BEFORE_SHUFFLE:
            ours[name] = _reordered(ours[name], out_channels)
    hints = {"upsampler": "espcn" if shuffles else "espcn_nearest", "scale": math.isqrt(width // out_channels)}
    renamed = {name: found.renamed.get(own, own) for name, own in dotted.items()}
    return Translation(ours, renamed, hints=hints)


def _to_idealo(tensors: Tensors, card: Card) -> Tensors:
    _check(tensors, card, "idealo", "espcn", "espcn_nearest")
    ours = dict(tensors)
    out_channels = len(ours["tail.6.weight"])
    if ours["tail.6.weight"].shape[1] == out_channels:
        for name in LAST_BEFORE_SHUFFLE:
            ours[name] = _reordered(ours[name], len(ours[name]) // out_channels)
    theirs = IDEALO.theirs({name: ours[name] for name in _in_order(ours)})
    slashed = {dotted: slash for slash, dotted in NAMES.items()}
    return {re.sub(r"\.(weight|bias)$", lambda match: slashed[match[0]], n): _to_kernel(t) for n, t in theirs.items()}


def _in_order(tensors: Tensors) -> Iterator[str]:
    """Yields our names in the order of idealo's layers, by which Keras reads weights."""
    layers = ["sfe1", "sfe2"]
    for d in range(count(tensors, "blocks.")):
        num_layers = count(tensors, f"blocks.{d}.dense.denselayer")
        layers += [f"blocks.{d}.dense.denselayer{c + 1}.conv" for c in range(num_layers)]
        layers.append(f"blocks.{d}.fusion")
    for layer in (*layers, "gff.0", "gff.1", "tail.0", "tail.2", "tail.4", "tail.6"):
        yield from (f"{layer}.weight", f"{layer}.bias")


def _reordered(values: Tensor, rows: int) -> Tensor:
    """Returns what is (columns, rows, ...) in one dimension as (rows, columns, ...) in one.

    A shuffle in torch takes the r r phases of a channel one after the other, channels last the channels of a phase.
    """
    return values.reshape(-1, rows, *values.shape[1:]).transpose(0, 1).flatten(0, 1)


def _from_kernel(tensor: Tensor) -> Tensor:
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor


def _to_kernel(tensor: Tensor) -> Tensor:
    return tensor.permute(2, 3, 1, 0).contiguous() if tensor.ndim == 4 else tensor


def _check(tensors: Tensors, card: Card, name: str, *upsamplers: str) -> None:
    """Passes a network with one of these upsamplers and without a bicubic skip.

    Raises:
        CheckpointError: another.
    """
    if card.arguments.get("bicubic_skip"):
        raise CheckpointError(f"networks of {name} have no bicubic skip, and this one adds its maps to one")
    found = card.arguments.get("upsampler", "pixelshuffle")
    if found in WIDTHS and len(tensors["blocks.0.dense.denselayer1.conv.weight"]) == len(tensors["sfe1.weight"]):
        found = upsamplers[0] if upsamplers[0] in WIDTHS else found  # both are the same
    if found not in upsamplers:
        raise CheckpointError(f"networks of {name} have the upsampler {' or '.join(upsamplers)}, and this one {found}")


DIALECTS = (
    Dialect(
        "yjn870",
        "rdn",
        _has("sfe1.weight", "rdbs.0.layers.0.conv.weight", "rdbs.0.lff.weight", "gff.0.weight"),
        _from_yjn870,
        _to_yjn870,
    ),
    Dialect(
        "edsr",
        "rdn",
        _has("SFENet1.weight", "RDBs.0.convs.0.conv.0.weight", "RDBs.0.LFF.weight", "GFF.0.weight"),
        _from_edsr,
        _to_edsr,
    ),
    Dialect(
        "idealo",
        "rdn",
        _has("F_m1/kernel", "F_1_1/kernel", "LFF_1/kernel", "GFF_1/kernel", "UPN1/kernel", "SR/kernel"),
        _from_idealo,
        _to_idealo,
        ".h5",
    ),
)

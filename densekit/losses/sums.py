"""Losses by name: "dice", "ce+dice", "ce+0.5*dice", "l1+0.1*fft"."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

from torch import Tensor

from densekit.errors import ConfigError, suggest
from densekit.losses.entropy import binary_cross_entropy, binary_focal, cross_entropy, focal, ohem
from densekit.losses.lovasz import lovasz
from densekit.losses.overlap import dice, focal_tversky, jaccard, tversky
from densekit.losses.pixel import SR_LOSSES

Loss = Callable[[Tensor, Tensor], Tensor]

SEG_LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "bce": binary_cross_entropy,
    "focal": focal,
    "bfocal": binary_focal,
    "ohem": ohem,
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "focal-tversky": focal_tversky,
    "lovasz": lovasz,
}
WEIGHTED = ("ce", "bce", "focal", "bfocal", "ohem")  # those that take class weights
SMOOTHED = ("ce", "bce")  # and label smoothing

_PART = re.compile(r"(?:(?P<weight>\d+(?:\.\d+)?|\.\d+)\s*\*\s*)?(?P<name>[^*]+)")


def segmentation_loss(name: str, weights: Tensor | None = None, *, label_smoothing: float = 0.0) -> Loss:
    """Returns the loss (logits, target) -> scalar of that name, such as "ce", "bce+dice" or "ce+0.5*lovasz".

    Args:
        name: names of SEG_LOSSES joined by "+", each with a factor before it or none; what they give is added.
        weights: of the classes, for the parts in WEIGHTED.
        label_smoothing: for the parts in SMOOTHED.

    Raises:
        ConfigError: an unknown name, a factor that is none, or weights or smoothing that no part takes.
    """
    parts = parse_sum(name, SEG_LOSSES)
    for value, takers, what in (
        (weights is not None, WEIGHTED, "class_weights"),
        (label_smoothing, SMOOTHED, "label_smoothing"),
    ):
        if value and not any(part in takers for _, part in parts):
            raise ConfigError(
                f"train.{what}: goes with {' or '.join(takers)}, but train.loss={name!r} has none of these"
            )
    losses: list[tuple[float, Loss]] = []
    for factor, part in parts:
        options: dict[str, object] = {}
        if part in WEIGHTED:
            options["weights"] = weights
        if part in SMOOTHED:
            options["label_smoothing"] = label_smoothing
        losses.append((factor, functools.partial(SEG_LOSSES[part], **options)))
    return functools.partial(_add, losses)


def super_resolution_loss(name: str, **others: Loss) -> Loss:
    """Returns the loss (sr, hr) -> scalar of that name, such as "l1" or "l1+0.1*fft".

    Args:
        name: names of SR_LOSSES and of `others` joined by "+", each with a factor before it or none.
        others: losses that need more than their name: `perceptual=Perceptual("vgg19.pth")`.

    Raises:
        ConfigError: an unknown name, or a factor that is none.
    """
    table = {**SR_LOSSES, **others}
    return functools.partial(_add, [(factor, table[part]) for factor, part in parse_sum(name, table)])


def parse_sum(name: str, known: Mapping[str, object]) -> list[tuple[float, str]]:
    """Returns (factor, name) of each part: "ce+0.5*dice" gives [(1.0, "ce"), (0.5, "dice")].

    Raises:
        ConfigError: an unknown name, or a factor that is no number above 0.
    """
    parts = []
    for part in name.split("+"):
        found = _PART.fullmatch(part.strip())
        word = found["name"].strip() if found else part.strip()
        factor = float(found["weight"] or 1) if found else 0.0
        if word in known and factor > 0:
            parts.append((factor, word))
        elif "*" in part and part.rpartition("*")[2].strip() in known:
            raise ConfigError(f"train.loss={name!r}: {part.strip()!r} needs a number above 0 before *, such as 0.5")
        else:
            raise ConfigError(
                f"train.loss={name!r}: no loss {word!r}{suggest(word, known)} (known: {', '.join(known)})"
            )
    return parts


def _add(losses: list[tuple[float, Loss]], x: Tensor, target: Tensor) -> Tensor:
    total = x.new_zeros(())
    for factor, loss in losses:
        value = loss(x, target)
        total = total + (value if factor == 1 else factor * value)
    return total

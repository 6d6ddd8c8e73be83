"""Losses. Void pixels never change a loss or its gradient; a batch that is all void gives 0.

Means are over the pixels of one forward pass. Where several passes are accumulated to one step, each counts alike,
however many of its pixels are void.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.color import LUMA
from densekit.errors import ConfigError, suggest

IGNORE = 255  # void in every mask tensor, whatever id the files use

Loss = Callable[[Tensor, Tensor], Tensor]


def l1(sr: Tensor, hr: Tensor) -> Tensor:
    """Returns the mean absolute difference of two tensors of one shape."""
    return F.l1_loss(sr, hr)


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Returns the mean of sqrt(d d + 1e-6), an L1 that is smooth at 0. Source: Lai et al., LapSRN (CVPR 2017)."""
    return torch.sqrt((sr - hr).square() + 1e-6).mean()


def luma(sr: Tensor, hr: Tensor) -> Tensor:
    """Returns the mean absolute difference of RGB tensors (B, 3, H, W) in luma, plus a twentieth of those in colour.

    Benchmarks score the luma, in which the eye sees detail. B - Y and R - Y, which JPEG files hold coarsely, are only
    kept in place.
    """
    difference = sr - hr
    weights = torch.tensor(LUMA).to(difference) / sum(LUMA)
    y = torch.einsum("c,bchw->bhw", weights, difference)
    red, blue = difference[:, 0] - y, difference[:, 2] - y
    return y.abs().mean() + 0.05 * (blue.abs().mean() + red.abs().mean())


SR_LOSSES: dict[str, Loss] = {"l1": l1, "charbonnier": charbonnier, "luma": luma}


def cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns softmax cross entropy over the pixels that are not void, weighted by class.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) int64, ids 0..C-1 or 255 for void.
        weights: (C,) or None; the mean is over the sum of the weights, as in torch.
    """
    valid = target != IGNORE
    weights = None if weights is None else weights.to(logits)
    total = F.cross_entropy(logits, target, weights, ignore_index=IGNORE, reduction="sum")
    if weights is None:
        return total / valid.sum().clamp(min=1)
    mass = weights[target.where(valid, 0)].where(valid, 0.0).sum()
    return total / mass.where(mass > 0, 1.0)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Returns sigmoid cross entropy over the pixels that are not void.

    Args:
        logits: (B, 1, H, W), of the foreground.
        target: (B, H, W) int64, 0, 1 or 255 for void.
    """
    valid = target != IGNORE
    loss = F.binary_cross_entropy_with_logits(logits[:, 0], (target == 1).to(logits.dtype), reduction="none")
    return loss.where(valid, 0.0).sum() / valid.sum().clamp(min=1)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Returns 1 minus the Dice coefficient of the batch, averaged over the classes present in the target.

    Args:
        logits: (B, C, H, W), softmaxed; with C = 1, a foreground logit.
        target: (B, H, W) int64, ids or 255 for void. Classes that are absent from the target do not count.

    Source: Milletari et al., V-Net (3DV 2016).
    """
    valid = target != IGNORE
    if logits.shape[1] == 1:
        scores = logits.sigmoid()
        wanted = (target == 1)[:, None].to(scores.dtype)
    else:
        scores = logits.softmax(dim=1)
        wanted = F.one_hot(target.where(valid, 0), logits.shape[1]).movedim(-1, 1).to(scores.dtype)
    mask = valid[:, None].to(scores.dtype)
    scores, wanted = scores * mask, wanted * mask
    overlap = 2 * (scores * wanted).sum(dim=(0, 2, 3))
    mass = (scores + wanted).sum(dim=(0, 2, 3))
    present = wanted.sum(dim=(0, 2, 3)) > 0
    losses = (1 - overlap / mass.clamp(min=1e-6)).where(present, 0.0)
    return losses.sum() / present.sum().clamp(min=1)


def segmentation_loss(name: str, weights: Tensor | None = None) -> Loss:
    """Returns the loss (logits, target) -> scalar of that name: "ce", "bce", "ce+dice" or "bce+dice".

    Args:
        name: parts joined by "+" are added.
        weights: of the classes, for "ce" only.

    Raises:
        ConfigError: an unknown name.
    """
    table: dict[str, Loss] = {
        "ce": lambda logits, target: cross_entropy(logits, target, weights),
        "bce": binary_cross_entropy,
        "dice": dice,
    }
    parts = []
    for part in name.split("+"):
        if part not in table:
            raise ConfigError(
                f"train.loss={name!r}: no loss {part!r}{suggest(part, table)} (known: {', '.join(table)})"
            )
        parts.append(table[part])
    return lambda logits, target: sum((part(logits, target) for part in parts), start=logits.new_zeros(()))

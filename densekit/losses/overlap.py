"""Losses of region overlap. Counts are summed over the batch; classes absent from the target do not count.

A class that the batch does not hold has no overlap to speak of: counting it as 1 would reward nothing, counting it as 0
would punish the network for what the crop left out. Its false positives still count against the classes they displace.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from densekit.losses.masking import mask, mean_over_present


class _Counts(NamedTuple):
    """By class, (C,): soft true positives, sum of scores, number of pixels wanted."""

    both: Tensor
    scores: Tensor
    wanted: Tensor


def _count(logits: Tensor, target: Tensor) -> _Counts:
    masked = mask(logits, target)
    scores, wanted = masked.scores(), masked.wanted()
    dims = (0, 2, 3)
    return _Counts((scores * wanted).sum(dims), scores.sum(dims), wanted.sum(dims))


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Returns 1 minus the Dice coefficient of the batch, averaged over the classes present in the target.

    Args:
        logits: (B, C, H, W), softmaxed; with C = 1 or several labels a pixel, a logit for each class.
        target: (B, H, W) ids, or (B, C, H, W) of 0 and 1 for several labels a pixel; 255 for void.

    Source: Milletari et al., V-Net (3DV 2016), with sums in place of sums of squares.
    """
    n = _count(logits, target)
    overlap = 2 * n.both / (n.scores + n.wanted).clamp(min=1e-6)
    return mean_over_present(1 - overlap, n.wanted > 0)


def jaccard(logits: Tensor, target: Tensor) -> Tensor:
    """Returns 1 minus the soft intersection over union of the batch, averaged over the classes present in the target.

    Args:
        logits: as in `dice`.
        target: as in `dice`.

    Source: Rahman and Wang, Optimizing Intersection-Over-Union in Deep Neural Networks (ISVC 2016).
    """
    n = _count(logits, target)
    overlap = n.both / (n.scores + n.wanted - n.both).clamp(min=1e-6)
    return mean_over_present(1 - overlap, n.wanted > 0)


def tversky(logits: Tensor, target: Tensor, alpha: float = 0.3, beta: float = 0.7, gamma: float = 1.0) -> Tensor:
    """Returns 1 minus the Tversky index of the batch, to the power of gamma, averaged over the present classes.

    Args:
        logits: as in `dice`.
        target: as in `dice`.
        alpha: weight of false positives. alpha = beta = 0.5 is Dice, 1 is Jaccard.
        beta: weight of false negatives; the larger, the fewer are missed.
        gamma: below 1 the classes that are almost right count more, above 1 those that are not.

    Source: Salehi et al., Tversky loss function (MLMI 2017), with their best alpha and beta; gamma from Abraham and
    Khan, A Novel Focal Tversky Loss (ISBI 2019).
    """
    n = _count(logits, target)
    mass = n.both + alpha * (n.scores - n.both) + beta * (n.wanted - n.both)
    losses = 1 - n.both / mass.clamp(min=1e-6)
    if gamma != 1:
        losses = losses.clamp(min=1e-6) ** gamma  # below 1 the power has an endless slope at 0
    return mean_over_present(losses, n.wanted > 0)


def focal_tversky(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the Tversky loss to the power of 3/4, the exponent of Abraham and Khan (1 / gamma with gamma = 4/3)."""
    return tversky(logits, target, gamma=0.75)

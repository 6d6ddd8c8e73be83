"""Losses pixel by pixel: cross entropy and what weighs its pixels. Means are over what is not void.

Class weights are (C,), or (2,) of background and foreground for a binary network; the mean is then over their sum.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.losses.masking import IGNORE, Masked, divide, known_gradient, mask

CHUNK = 1 << 17  # numbers that one step of `binary_focal` works on: a few such tensors fit a core's cache


def cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Returns cross entropy: softmax for multiclass, sigmoid (as `binary_cross_entropy`) for binary and multilabel.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) ids 0..C-1, or (B, C, H, W) of 0 and 1 for several labels a pixel; 255 for void.
        weights: of the classes.
        label_smoothing: share of the target that goes to all classes alike, 0 to 1.
    """
    masked = mask(logits, target)
    if not masked.exclusive:
        return _sigmoid_entropy(masked, weights, label_smoothing)
    mass = masked.mass(weights, by_pixel=True).sum()
    weights = None if weights is None else weights.to(masked.logits)
    total = F.cross_entropy(
        masked.logits,
        masked.target.long(),
        weights,
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return divide(total, mass)


def binary_cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Returns sigmoid cross entropy, the mean over pixels and classes; for multiclass, each class against the rest.

    Args:
        logits: (B, C, H, W); C = 1 is the foreground.
        target: as in `cross_entropy`.
        weights: of the classes; for several classes, of their channels.
        label_smoothing: s makes the targets s/2 and 1 - s/2.
    """
    return _sigmoid_entropy(mask(logits, target), weights, label_smoothing)


def _sigmoid_entropy(masked: Masked, weights: Tensor | None, label_smoothing: float) -> Tensor:
    wanted = masked.wanted().to(masked.logits.dtype)
    if label_smoothing:
        wanted = wanted * (1 - label_smoothing) + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(masked.logits, wanted, reduction="none")
    return masked.mean(losses, weights)


def ohem(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, threshold: float = 0.7, min_kept: float = 1 / 16
) -> Tensor:
    """Returns cross entropy over the hard pixels alone: those whose right class has a probability below `threshold`.

    Args:
        logits: as in `cross_entropy`.
        target: as in `cross_entropy`; with several labels a pixel, each label is hard or not for itself.
        weights: of the classes; they do not decide what is hard.
        threshold: probability of the right answer from which on a pixel is easy.
        min_kept: share of the labelled pixels that is kept at least, the hardest ones and any equal to the last.

    Source: Shrivastava et al., Training Region-based Object Detectors with OHEM (CVPR 2016); threshold and share as in
    BiSeNet's code.
    """
    masked = mask(logits, target)
    if masked.exclusive:
        losses = F.cross_entropy(masked.logits, masked.target.long(), ignore_index=IGNORE, reduction="none")
    else:
        losses = F.softplus(torch.where(masked.wanted(), -masked.logits, masked.logits))
    mass = masked.mass(weights, by_pixel=masked.exclusive)
    with torch.no_grad():
        valid = masked.valid.view_as(losses)
        ordered = losses.masked_fill(~valid, -1.0).flatten().sort(descending=True).values
        last = (valid.sum() * min_kept).ceil().long() - 1
        bar = ordered[last.clamp(min=0)].clamp(max=-math.log(threshold))
        mass = mass.masked_fill(losses < bar, 0.0)
    return divide((losses * mass).sum(), mass.sum())


def focal(logits: Tensor, target: Tensor, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Returns cross entropy with each pixel weighed by (1 - p)^gamma, p its right class's probability; gamma 0 is CE.

    Softmax for multiclass; sigmoid (as `binary_focal`) for binary and multilabel.

    Args:
        logits: as in `cross_entropy`.
        target: as in `cross_entropy`.
        weights: of the classes.
        gamma: how fast easy pixels fade.

    Source: Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), without its alpha, which weights serve for.
    """
    masked = mask(logits, target)
    if not masked.exclusive:
        return _sigmoid_focal(masked, weights, gamma)
    losses = F.cross_entropy(masked.logits, masked.target.long(), ignore_index=IGNORE, reduction="none")
    missing = -torch.expm1(-losses)  # 1 - p, with all its digits where p is near 1
    if gamma < 1:
        missing = missing.clamp(min=1e-12)  # the power has an endless slope at 0
    return masked.mean(missing**gamma * losses, weights)


def binary_focal(logits: Tensor, target: Tensor, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Returns sigmoid focal loss, the mean over pixels and classes; for multiclass, each class against the rest.

    Args:
        logits: as in `binary_cross_entropy`.
        target: as in `binary_cross_entropy`.
        weights: of the classes; for several classes, of their channels.
        gamma: how fast easy pixels fade.

    Source: as `focal`; the paper's own form.
    """
    return _sigmoid_focal(mask(logits, target), weights, gamma)


def _sigmoid_focal(masked: Masked, weights: Tensor | None, gamma: float) -> Tensor:
    """Returns the loss with a gradient found along with it, chunk by chunk, which spares memory and its traffic.

    With y the logit of the wrong answer and q = sigmoid(y), the loss is q^g softplus(y) and its slope in y is
    q^g (g (1 - q) softplus(y) + q), which stays finite everywhere, unlike what autograd makes of q^g for g < 1.
    """
    x = masked.logits.detach()
    gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    count, total = masked.total_mass(weights), x.new_zeros(())
    scale = 1 / count.where(count > 0, 1.0)
    rows = max(CHUNK // (x.shape[1] * x.shape[3]), 1) if x.device.type == "cpu" else x.shape[2]
    for sample, row in itertools.product(range(x.shape[0]), range(0, x.shape[2], rows)):
        part = Masked(x, masked.target, masked.valid).part(sample, slice(row, row + rows))
        mass, slope = part.mass(weights) * scale, gradient[sample : sample + 1, :, row : row + rows]
        y = _negate_wanted(part.logits.clone(memory_format=torch.contiguous_format), part)
        q, cost = y.sigmoid(), F.softplus(y)
        faded = (q * q if gamma == 2 else q**gamma).mul_(mass)
        total += (faded * cost).sum()
        torch.mul(torch.addcmul(q, 1 - q, cost, value=gamma), faded, out=slope)
        _negate_wanted(slope, part)
    return known_gradient(masked.logits, total, gradient)


def _negate_wanted(x: Tensor, masked: Masked) -> Tensor:
    """Returns x (B, C, H, W), in place, with another sign at the classes that the target asks for."""
    if not masked.exclusive:
        return x.mul_(1 - 2 * masked.wanted().to(x.dtype))
    ids = masked.target.where(masked.valid[:, 0], 0).long()[:, None]  # one place a pixel: cheaper than a look at all
    return x.scatter_(1, ids, -x.gather(1, ids))

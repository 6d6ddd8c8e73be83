"""The Lovász extension of the Jaccard loss, exact, at a fraction of the usual cost."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densekit.losses.masking import Masked, known_gradient, mask

LOW_HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)  # where a 64-bit number has its 32-bit halves


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the Lovász extension of the Jaccard loss over the batch, averaged over the classes present in the target.

    Multiclass: Lovász-Softmax. Binary and several labels a pixel: Lovász hinge, each class for itself.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) ids, or (B, C, H, W) of 0 and 1 for several labels a pixel; 255 for void.

    Differs from the authors' code where nothing of a class is wanted: there their hinge is the largest error, here the
    class does not count, as in every loss of overlap. Where errors are equal, any order gives the same loss and a
    subgradient; ours may be another than theirs.

    Source: Berman, Triki and Blaschko, The Lovász-Softmax loss (CVPR 2018), algorithm 1.
    """
    masked = mask(logits, target)
    x = masked.logits.softmax(dim=1) if masked.exclusive else masked.logits
    solve = _solve_rows if x.device.type == "cpu" and x.dtype == torch.float32 else _solve_at_once
    losses, gradient = solve(x.detach(), masked)
    return known_gradient(x, losses.sum(), gradient)


def _solve_at_once(x: Tensor, masked: Masked) -> tuple[Tensor, Tensor]:
    """Returns what each class adds to the loss (C,), and the gradient of their sum by x; by one sort of all."""
    rows = x.movedim(1, 0).flatten(1)
    wanted = masked.wanted().movedim(1, 0).flatten(1)
    errors = torch.where(wanted, 1 - rows, rows if masked.exclusive else 1 + rows)
    idle = (errors <= 0) | ~masked.valid.movedim(1, 0).flatten(1)  # NaN is not idle: it must come out
    errors, order = errors.masked_fill(idle, 0.0).sort(dim=1, descending=True)
    hit = wanted.gather(1, order)
    found = hit.cumsum(1) - hit.long()  # whole numbers: a float would lose count at 16.7 million pixels
    missed = torch.arange(hit.shape[1], device=hit.device) - found
    total = wanted.sum(1, keepdim=True)
    union = (total + missed).clamp(min=1).to(x.dtype)
    steps = torch.where(hit, 1 / union, (total - found) / (union * (union + 1)))
    present = total > 0
    steps = steps.masked_fill((errors <= 0) | ~present, 0.0) / present.sum().clamp(min=1)
    gradient = torch.zeros_like(rows).scatter_(1, order, torch.where(hit, -steps, steps))
    gradient = gradient.view(x.shape[1], x.shape[0], *x.shape[2:]).movedim(0, 1)
    return (errors * steps).sum(1), gradient


def _solve_rows(x: Tensor, masked: Masked) -> tuple[Tensor, Tensor]:
    """Returns the same as `_solve_at_once`, class by class, sorting only the pixels that can matter."""
    gradient = torch.zeros_like(x, memory_format=torch.contiguous_format)
    hits = _places_by_class(masked)
    voids = [np.flatnonzero(~void.numpy()) for void in masked.valid.movedim(1, 0).flatten(1)]
    losses = np.zeros(len(hits), np.float32)
    scale = 1 / max(sum(len(places) > 0 for places in hits), 1)
    for channel, places in enumerate(hits):
        if not len(places):
            continue
        errors = x[:, channel].numpy().flatten()  # a copy
        hit_errors = 1 - errors[places]
        if not masked.exclusive:
            errors += 1
        errors[places] = errors[voids[channel % len(voids)]] = -1
        bar = max(np.float32(0), hit_errors.min())  # in this order, NaN is no bar
        active = ~(hit_errors <= 0)  # so worded, NaN is active
        rest = np.flatnonzero(~(errors <= bar))
        losses[channel], hit_steps, rest_steps = _solve_row(hit_errors[active], errors[rest], len(places), scale)
        errors.fill(0)
        errors[places[active]] = -hit_steps
        errors[rest] = rest_steps
        gradient[:, channel] = torch.from_numpy(errors).view_as(gradient[:, channel])
    return torch.from_numpy(losses), gradient


def _places_by_class(masked: Masked) -> list[NDArray[np.intp]]:
    """Returns for each class the places in (B, H, W), flattened, that the target gives it."""
    if not masked.exclusive:
        return [np.flatnonzero(masked.target[:, c].numpy() == 1) for c in range(masked.logits.shape[1])]
    ids = masked.target.to(torch.uint8).numpy().ravel()
    order = np.argsort(ids, kind="stable")  # of bytes: by counting
    ends = np.searchsorted(ids, np.arange(masked.logits.shape[1] + 1), sorter=order)
    return [order[start:end] for start, end in itertools.pairwise(ends)]


def _solve_row(
    hit: NDArray[np.float32], rest: NDArray[np.float32], total: int, scale: float
) -> tuple[float, NDArray[np.float32], NDArray[np.float32]]:
    """Returns one class's loss and its steps at each error, of pixels wanted and of others; all of them times `scale`.

    Two exact savings. In falling order of errors, a pixel that is not wanted has a step of 0 once all wanted ones have
    passed: what errs no more than the least wrong of them needs no sorting (the caller has left it out), nor does an
    error of 0. And the bits of floats >= 0 rise as the floats do, so that an error and its place fit one 64-bit number;
    numpy sorts those with vector instructions, some ten times as fast as torch sorts floats with their places.
    """
    keys = np.empty(len(rest) + len(hit), np.int64)
    low, high = (keys.view(np.int32)[half::2] for half in LOW_HIGH)
    np.invert(np.concatenate([rest, hit]).view(np.int32), out=high)  # the largest error first
    low[:] = np.arange(len(keys), dtype=np.int32)
    keys.sort()
    errors, place = np.invert(high).view(np.float32), low.astype(np.intp)
    is_hit = place >= len(rest)
    loss, steps = 0.0, np.empty(len(keys), np.float32)
    # before a wanted pixel, `rank` pixels err more, 0..len(hit)-1 of them wanted: the union holds the others on top
    rank = np.flatnonzero(is_hit)
    step = scale / (total + rank - np.arange(len(hit)))
    loss += float((errors[rank] * step).sum())
    steps[place[rank]] = step
    # before another, 0..len(rest)-1 others: the union is known, and `rank` tells how many of the wanted are to come
    rank = np.flatnonzero(~is_hit)
    union = np.arange(total, total + len(rest), dtype=np.float64)
    step = union - rank
    union *= union + 1
    union /= scale
    step /= union
    loss += float((errors[rank] * step).sum())
    steps[place[rank]] = step
    return loss, steps[len(rest) :], steps[: len(rest)]

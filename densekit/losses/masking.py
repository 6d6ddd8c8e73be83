"""The one place where void is taken out, so that no loss has to know how.

Void pixels never change a loss or its gradient, bit for bit, whatever their logits hold, infinity and NaN included. Two
things together see to it: what void counts is 0 everywhere (`Masked`), and the logits under void are numbers of which 0
times anything is 0 (`mask`). A batch that is all void gives 0, and zeros as gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from densekit.errors import DataError

IGNORE = 255  # void in every mask tensor, whatever id the files use
TAME = 1e4  # logits of smaller size give finite losses and slopes


class Masked(NamedTuple):
    """Logits and target with void taken out, one of two kinds.

    Attributes:
        logits: (B, C, H, W) float32 or float64, finite under void.
        target: where `exclusive`, (B, H, W) ids of which a pixel has one; else (B, C, H, W) of 0 and 1, each class for
            itself. 255 is void in both.
        valid: bool, what is not void: (B, 1, H, W) where `exclusive`, else (B, C, H, W).
    """

    logits: Tensor
    target: Tensor
    valid: Tensor

    @property
    def exclusive(self) -> bool:
        return self.target.ndim == 3

    def part(self, sample: int, rows: slice) -> Masked:
        """Returns some rows of one sample."""
        one = slice(sample, sample + 1)
        target = self.target[one, rows] if self.exclusive else self.target[one, :, rows]
        return Masked(self.logits[one, :, rows], target, self.valid[one, :, rows])

    def wanted(self) -> Tensor:
        """Returns bool (B, C, H, W): where a class is what the target asks for; False under void."""
        if not self.exclusive:
            return self.target == 1
        ids = torch.arange(self.logits.shape[1], device=self.target.device, dtype=self.target.dtype)
        return self.target[:, None] == ids.view(1, -1, 1, 1)

    def scores(self) -> Tensor:
        """Returns probabilities (B, C, H, W): softmax or sigmoid, 0 under void."""
        scores = self.logits.softmax(dim=1) if self.exclusive else self.logits.sigmoid()
        return scores.where(self.valid, 0.0)

    def mass(self, weights: Tensor | None, *, by_pixel: bool = False) -> Tensor:
        """Returns what each loss counts: 0 under void, else 1 or its class weight.

        Args:
            weights: (C,), or (2,) of background and foreground where C = 1.
            by_pixel: (B, H, W) by the pixel's own class, for exclusive targets; else (B, C, H, W) by channel, or
                (B, 1, H, W) where it is the same for all.

        Raises:
            DataError: another number of weights.
        """
        classes = self.logits.shape[1]
        valid = self.valid[:, 0] if by_pixel else self.valid
        if weights is None:
            return valid.to(self.logits.dtype)
        if weights.shape != (max(classes, 2),):
            raise DataError(f"class weights of shape {tuple(weights.shape)}; expected ({max(classes, 2)},)")
        weights = weights.to(self.logits)
        if by_pixel or classes == 1:
            return weights[self.target.where(valid, 0).long()].where(valid, 0.0)
        return weights.view(1, -1, 1, 1).where(valid, 0.0)

    def total_mass(self, weights: Tensor | None) -> Tensor:
        """Returns the sum of the mass over (B, C, H, W)."""
        mass = self.mass(weights)
        return mass.sum() * (self.logits.shape[1] // mass.shape[1])

    def mean(self, losses: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns the mean of `losses` ((B, H, W) or (B, C, H, W)) over what is not void, weighted by class."""
        by_pixel = losses.ndim == 3
        mass = self.mass(weights, by_pixel=by_pixel)
        return divide((losses * mass).sum(), mass.sum() if by_pixel else self.total_mass(weights))


def mask(logits: Tensor, target: Tensor) -> Masked:
    """Returns logits and target with void taken out. The shapes say which of three cases it is.

    Args:
        logits: (B, C, H, W) of any float type; half precision is taken up to float32.
        target: multiclass: (B, H, W) ids 0..C-1; binary (C = 1): (B, H, W) of 0 and 1; multilabel: (B, C, H, W) of
            0 and 1. Of any integer type, 255 for void in each.

    Raises:
        DataError: shapes that do not go together, or over 255 classes of which a pixel has one; on the CPU, also a
            label that is neither a class nor void. On other devices a look at the labels would wait for them: data
            sets check theirs when they read them.
    """
    if logits.ndim != 4 or target.shape not in (logits.shape, (logits.shape[0], *logits.shape[2:])):
        raise DataError(
            f"a target of shape {tuple(target.shape)} does not go with logits of shape {tuple(logits.shape)}; "
            "expected (B, H, W), or (B, C, H, W) for several labels a pixel, with logits (B, C, H, W)"
        )
    classes = logits.shape[1]
    if classes == 1:
        target = target.reshape(logits.shape)  # foreground or not is one label for itself
    exclusive = target.ndim == 3
    if exclusive and classes > IGNORE:
        raise DataError(f"{classes} classes, but {IGNORE} is void in a target; expected {IGNORE} classes at most")
    valid = target != IGNORE
    on_cpu = target.device.type == "cpu"
    if on_cpu:
        check_labels(target, valid, classes if exclusive else 2)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if exclusive:
        valid = valid[:, None]
    if not (on_cpu and _is_tame(logits)):  # elsewhere the question would cost more than the answer saves
        logits = logits.where(valid, 0.0)
    return Masked(logits, target, valid)


def check_labels(target: Tensor, valid: Tensor, classes: int) -> None:
    """Passes labels 0..classes-1 where `valid`.

    Raises:
        DataError: there is another.
    """
    wrong = valid & ((target < 0) | (target >= classes))
    if wrong.any():
        raise DataError(
            f"label {target[wrong][0].item():g} in the target ({int(wrong.sum())} such); "
            f"expected 0..{classes - 1}, or {IGNORE} for void"
        )


def _is_tame(logits: Tensor) -> bool:
    """Returns whether no logit is so large that a loss or slope of it could be infinite; NaN is not tame.

    Two looks at the logits cost a tenth of what a masked copy of them costs, which most batches do not need.
    """
    if not logits.numel():
        return True
    low, high = logits.detach().aminmax()
    return bool((low > -TAME) & (high < TAME))


def divide(total: Tensor, mass: Tensor) -> Tensor:
    """Returns total / mass, and `total`, which is then 0, where there is no mass."""
    return total / mass.where(mass > 0, 1.0)


def mean_over_present(losses: Tensor, present: Tensor) -> Tensor:
    """Returns the mean of `losses` (C,) over the classes that are `present` (C,) in the target; 0 if there is none."""
    return losses.where(present, 0.0).sum() / present.sum().clamp(min=1)


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.BackwardCFunction, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        if upstream.device.type == "cpu" and upstream == 1:  # as for a loss that stands alone: spares a copy of it all
            return gradient, None, None
        return gradient * upstream, None, None


def known_gradient(x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Returns the scalar `value`, whose gradient with respect to `x` is `gradient`, found together with it."""
    return _KnownGradient.apply(x, value, gradient)

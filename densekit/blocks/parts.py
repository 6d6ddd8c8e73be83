"""What a layer of a dense block is made of, as far as it must be known to run it forwards and backwards by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densekit.blocks.norms import BATCH_NORMS
from densekit.blocks.synced import Group, added_up, group_of, share_statistics


@dataclass(frozen=True)
class Stage:
    """One composite function of a layer: [norm, ReLU,] convolution, then [an activation or] dropout.

    Attributes:
        conv: the convolution.
        norm: of what it reads, followed by a ReLU; None where it reads its input as it is.
        slope: of a leaky ReLU after the convolution, 0 for a ReLU; None where there is none.
        drop_rate: of the dropout behind, 0 outside of training.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None = None
    slope: float | None = None
    drop_rate: float = 0.0

    @property
    def is_known(self) -> bool:
        """Says whether the engine runs it as it is: no other kind of norm, no other padding, no hook."""
        modules: list[nn.Module] = [self.conv] if self.norm is None else [self.conv, self.norm]
        return (
            type(self.conv) is nn.Conv2d
            and self.conv.padding_mode == "zeros"
            and (self.norm is None or is_plain(self.norm))
            and not any(map(has_hooks, modules))
        )

    @property
    def is_measured(self) -> bool:
        """Says whether its norm uses the statistics of the batch."""
        return self.norm is not None and self.norm.training

    def rectified(self, x: Tensor, stats: Tensor) -> Tensor:
        """Returns what the stage's convolution reads: relu(norm(x)), or `x` itself without a norm.

        Args:
            x: (B, c, H, W).
            stats: as `rectify` takes them.
        """
        return x if self.norm is None else rectify(self.norm, x, stats)

    def activated(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns what the stage makes of its convolution's result, in place, and the random state before it drew."""
        if self.slope is not None:
            return F.leaky_relu_(u, self.slope), None
        if not self.drop_rate:
            return u, None
        state = random_state(u.device)
        return F.dropout(u, self.drop_rate), state

    def activated_backward(self, grad: Tensor, made: Tensor, state: Tensor | None) -> Tensor:
        """Returns the gradient of the convolution's result from that of what the stage `made`."""
        if self.slope is not None:
            return torch.ops.aten.leaky_relu_backward(grad, made, self.slope, True)
        if state is None:
            return grad
        with replayed(state, grad.device):
            return grad * F.dropout(torch.ones_like(grad), self.drop_rate)


def is_plain(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Says whether a norm is torch's own, and whether it has what it needs to be run by hand."""
    if not isinstance(norm, _BatchNorm) or type(norm) not in BATCH_NORMS:
        return False
    return norm.affine and (norm.training or norm.running_mean is not None)


EVERY = slice(None)


def statistics_of(norm: nn.BatchNorm2d, stats: Tensor | Sequence[Tensor], part: slice = EVERY) -> tuple[Tensor, Tensor]:
    """Returns mean and 1 / sqrt(variance + eps) as a norm uses them: those in `stats` in training, else its own."""
    if norm.training:
        return stats[0][part], stats[1][part]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean[part], torch.rsqrt(norm.running_var[part] + norm.eps)


def rectify(norm: nn.BatchNorm2d, x: Tensor, stats: Tensor | Sequence[Tensor], part: slice = EVERY) -> Tensor:
    """Returns relu(norm(x)), rounded as torch's own kernel does in training.

    Args:
        norm: in training it uses `stats`, otherwise its own.
        x: (B, c, H, W), its channels in `part`.
        stats: batch mean and 1 / sqrt(variance + eps) in the first two rows.
        part: of the channels.
    """
    mean, scale = statistics_of(norm, stats, part)
    a = norm.weight.detach()[part] * scale
    b = torch.addcmul(norm.bias.detach()[part], mean, a, value=-1)
    return torch.addcmul(b.view(1, -1, 1, 1), x.to(a.dtype), a.view(1, -1, 1, 1)).relu_().to(x.dtype)


def relu_backward_(grad: Tensor, y: Tensor) -> Tensor:
    """Returns the gradient of what a ReLU read from that of what it made, `y`; in the memory of `grad` if it can."""
    grad = grad.to(y.dtype)
    return torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad)


def norm_backward(
    norm: nn.BatchNorm2d,
    grad: Tensor,
    x: Tensor,
    stats: Tensor | Sequence[Tensor],
    part: slice = EVERY,
    *,
    to_input: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of input, weight and bias; the first is nothing without `to_input`. Else as `rectify`.

    Where processes share the statistics, `stats` has all four rows; the gradients of weight and bias are this one's.
    """
    group = group_of(norm)
    running = [None if tensor is None else tensor[part] for tensor in (norm.running_mean, norm.running_var)]
    dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
        grad, x, norm.weight[part], *running, stats[0][part], stats[1][part], norm.training, norm.eps,
        [to_input and group is None, True, True],
    )  # fmt: skip
    if to_input and group is not None:
        weight = norm.weight[part]
        taken = taken_away(x, [row[part] for row in stats], added_up(weight * torch.stack([dbeta, dgamma]), group))
        dx = taken.addcmul_(grad, (weight * stats[1][part]).view(1, -1, 1, 1)).to(grad.dtype)
    return dx, dgamma, dbeta


def taken_away(x: Tensor, stats: Tensor | Sequence[Tensor], sums: Tensor) -> Tensor:
    """Returns what batch statistics add to the gradient of maps: it loses its mean and its projection on them.

    Args:
        x: the maps, (B, c, H, W).
        stats: theirs, as `measure` writes them.
        sums: over all norms that read them, of weight times gradient of the bias, and times that of the weight, (2, c).
    """
    mean, scale, _, number = stats
    of_bias, of_weight = sums * scale / number
    slope = -of_weight * scale
    offset = -of_bias - mean * slope
    return torch.addcmul(offset.view(1, -1, 1, 1), x.to(slope.dtype), slope.view(1, -1, 1, 1))


def update_running(norm: nn.BatchNorm2d, stats: Tensor) -> None:
    """Moves the running statistics of a norm as a forward pass of its own would, to the last bit on CPUs.

    Args:
        norm: in training.
        stats: as `measure` writes them.
    """
    if not norm.track_running_stats:
        return
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    mean, _, unbiased, _ = stats
    norm.running_mean.copy_(share * mean + (1 - share) * norm.running_mean)
    old = (1 - share) * norm.running_var
    if old.dtype == torch.float64:
        norm.running_var.copy_(share * unbiased + old)
    else:  # torch's kernel rounds once here
        norm.running_var.copy_(torch.addcmul(old, torch.full_like(unbiased, share), unbiased))


STATISTICS = 4  # of a map: the rows of what `measure` writes


def measure(x: Tensor, eps: float, stats: Tensor, group: Group | None) -> None:
    """Writes the `STATISTICS` of maps (B, c, H, W) into `stats` (4, c).

    They are mean, 1 / sqrt(variance + eps), unbiased variance and number of values: of this process, or of a group.
    No number in `stats` may be infinite or NaN before.
    """
    # With momentum 1 what is left in running statistics is the batch's own. Of maps as a layer made them, not of a
    # slice of a buffer: only then are the sums those of the plain block to the last bit.
    stats[1] = torch.native_batch_norm(x, None, None, stats[0], stats[2], True, 1.0, eps)[2]
    stats[3] = x.numel() // x.shape[1]
    if group is not None:
        share_statistics(stats, eps, group)


def has_hooks(module: nn.Module) -> bool:
    """Says whether something wants to be called with this module, which the engine would not do."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def random_state(device: torch.device) -> Tensor:
    """Returns the state that `device` draws its random numbers from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Returns the type in which autocast lets convolutions on `device` compute, None where it is off."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def learns(*tensors: Tensor) -> bool:
    """Says whether eager autograd records what is made of `tensors`, so that there is memory to save."""
    is_recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return is_recorded and any(tensor.requires_grad for tensor in tensors)


@contextlib.contextmanager
def replayed(state: Tensor, device: torch.device) -> Iterator[None]:
    """Draws again what was drawn from `state` on, and leaves the random state as it was."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.cuda.set_rng_state(state, device) if on_gpu else torch.set_rng_state(state)
        yield


def common_eps(layers: Sequence[Sequence[Stage]]) -> tuple[float | None, Group | None]:
    """Returns the eps of the norms that read the block's maps, and who shares their batch statistics.

    The first is None if none reads batch statistics.

    Raises:
        ValueError: they differ, so the maps' statistics cannot be shared.
    """
    norms = [stages[0].norm for stages in layers if stages[0].norm is not None and stages[0].norm.training]
    found = {(norm.eps, group_of(norm)) for norm in norms}
    if len(found) > 1:
        raise ValueError("norms of different eps, or of different processes")
    return found.pop() if found else (None, None)

"""What the parts of an optimised network have in common."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import Tensor, nn

from densekit.errors import ConfigError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Planned(nn.Module):
    """A part of a network whose constants are worked out for prediction. It does not follow the weights it was made of.

    Raises (when set to training):
        ConfigError: always.
    """

    def train(self: AnyModule, mode: bool = True) -> AnyModule:
        if mode:
            raise ConfigError("an optimised network cannot be trained: train the one that it was made of")
        return super().train(mode)


def is_affine(norm: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """Says whether a module is a batch norm that does the same to every picture: one with running statistics."""
    return type(norm) is nn.BatchNorm2d and norm.running_mean is not None


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns scale and shift, in float64, of what a batch norm does in evaluation: norm(x) = scale x + shift.

    Args:
        norm: one that `is_affine`.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    return scale.detach(), shift.detach()


def per_map(values: Tensor, like: Tensor) -> Tensor:
    """Returns a value for each map, (C,), as (1, C, 1, 1) in the type of `like`."""
    return values.to(like.dtype).view(1, -1, 1, 1)

"""What the parts of an optimised network have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeGuard, TypeVar

from torch import Tensor, nn

from densekit.errors import ConfigError

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Constants = TypeVar("Constants")
KINDS = 4  # of maps that constants are kept for: a row of tiles has its first, its last, and two widths between


class Planned(nn.Module):
    """A part of a network whose constants are worked out for prediction. It does not follow the weights it was made of.

    Raises (when set to training):
        ConfigError: always.
    """

    def train(self: AnyModule, mode: bool = True) -> AnyModule:
        if mode:
            raise ConfigError("an optimised network cannot be trained: train the one that it was made of")
        return super().train(mode)


class Packed(Planned):
    """A part with constants in forms that depend on the maps, worked out when they are first needed."""

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[Hashable, Any] = {}  # never changed, only replaced: threads may share a network

    def packed(self, key: Hashable, make: Callable[[], Constants]) -> Constants:
        """Returns the constants for a kind of maps; `make` works them out. The last few kinds are remembered."""
        known = self._packed
        if key not in known:
            known = {**dict(list(known.items())[1 - KINDS :]), key: make()}
            self._packed = known
        constants: Constants = known[key]
        return constants

    def _apply(self, fn: Any, recurse: bool = True) -> Packed:
        self._packed = {}
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}  # oneDNN's can be neither copied nor pickled


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

"""What the parts of an optimised network have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densekit.blocks.norms import BATCH_NORMS
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
    """A part that runs in one way or another, with constants in other forms, by the maps that come.

    How it does is worked out at the first maps of a kind, so that later ones of the kind cost no decision.
    """

    def __init__(self) -> None:
        super().__init__()
        # Never changed, only replaced: threads may share a network.
        self._packed: dict[Hashable, Any] = {}  # for each kind
        self._common: dict[str, Any] = {}  # for all of them

    def packed(self, x: Tensor, make: Callable[[Tensor], Constants], *, use: str = "") -> Constants:
        """Returns what `make` works out for such maps. The last few kinds are remembered.

        Args:
            x: maps of the kind.
            make: is given them.
            use: which it is, where a part has more than one thing to remember.
        """
        key = use, x.shape, x.dtype, x.device.type, torch.get_num_threads()
        known = self._packed
        if key not in known:
            known = {**dict(list(known.items())[1 - KINDS :]), key: make(x)}
            self._packed = known
        constants: Constants = known[key]
        return constants

    def common(self, name: str, make: Callable[[], Constants]) -> Constants:
        """Returns what `make` works out when it is first needed, whatever the maps."""
        known = self._common
        if name not in known:
            known = self._common = {**known, name: make()}
        constants: Constants = known[name]
        return constants

    def _apply(self, fn: Any, recurse: bool = True) -> Packed:
        self._packed, self._common = {}, {}
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}, "_common": {}}  # oneDNN's weights can be neither copied nor pickled


def is_affine(norm: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """Says whether a module is a batch norm that does the same to every picture: one with running statistics."""
    return isinstance(norm, _BatchNorm) and type(norm) in BATCH_NORMS and norm.running_mean is not None


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

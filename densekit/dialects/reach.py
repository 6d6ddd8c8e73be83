"""How far a network that nothing is known of sees: measured, since its layers do not say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Net: TypeAlias = Callable[[Tensor], Tensor]

LENGTHS = (128, 1024)  # pixels of the strips, tried in turn; half of the last one is the largest field that is found
CLOSE = 1e-4  # of the largest value; the order of summation changes a hundredth of that
# Operations that read where values tell them to: NaN does not come out of them everywhere, and no field bounds them.
STEERED = ("grid_sampler", "deform_conv", "topk", "sort", "argmax")


def measured_field(net: Net, *, in_channels: int, scale: int, multiple_of: int = 1, thickness: int = 8) -> int | None:
    """Returns how far a network sees, in pixels of its input, or None if no halo makes its tiles exact.

    A line of NaN across a strip comes out of the network wherever it is seen. That is a field only if it moves along
    with the line, which it does not where attention has windows; attention and statistics over the whole image spread
    it over all of the strip. What is found is checked on random values: the middle of a strip, cut out with its halo,
    has to come out as it does from the whole strip.

    Args:
        net: (1, C, H, W) -> (1, C', scale H, scale W) on the CPU, in evaluation mode.
        in_channels: C.
        scale: output pixels per input pixel.
        multiple_of: what the network needs height and width to be divisible by; tiles begin on that grid.
        thickness: of the strips: height and width that the network takes at least.

    The result is exact for multiple_of 1, and else up to multiple_of - 1 pixels too large. It costs what a picture of
    at most 230x230 pixels does where strips of 8 pixels do.
    """
    lying = _Probe(net, in_channels, scale, multiple_of, thickness)
    standing = _Probe(lambda x: net(x.mT).mT, in_channels, scale, multiple_of, thickness)
    with torch.no_grad(), _Watch() as watch:
        field, length = lying.field()
        if field is None:
            return None
        other, other_length = standing.field()
        if other is None or watch.saw_steered:
            return None
        is_enough = lying.is_enough(field, length) if field >= other else standing.is_enough(other, other_length)
    return max(field, other) if is_enough else None


class _Probe:
    """Strips of an image through a network, along their length."""

    def __init__(self, net: Net, in_channels: int, scale: int, step: int, thickness: int) -> None:
        self._net, self._in_channels, self._scale, self._step = net, in_channels, scale, step
        self._thickness = _round_up(thickness, step)

    def field(self) -> tuple[int | None, int]:
        """Returns the field along the strip, None if there is none, and the length of the strip that showed it."""
        length = 0
        for length in LENGTHS:
            middle = self._middle(length)
            seen = self._seen(length, middle)
            pixels = seen.nonzero().flatten() // self._scale
            if len(pixels) == 0:
                break
            first, last = int(pixels[0]), int(pixels[-1])
            if first == 0 or last == self._whole(length) - 1:
                continue
            if not torch.equal(self._seen(length, middle + self._step), seen.roll(self._step * self._scale)):
                break
            # Of a grid of pixels the first was asked; another one is seen no further than the first of the next cell.
            return max(middle - first, last - middle) + self._step - 1, length
        return None, length

    def is_enough(self, field: int, length: int) -> bool:
        """Says whether the middle of a strip comes out of a piece with this halo as it does from the whole strip."""
        middle, halo = self._middle(length), _round_up(field, self._step)
        start, end = max(0, middle - halo), min(self._whole(length), middle + self._step + halo)
        x = self._strip(length)
        whole, piece = self._net(x), self._net(x[..., start:end].contiguous())
        scale, size = self._scale, self._step * self._scale
        expected = whole[..., middle * scale :][..., :size]
        difference = piece[..., (middle - start) * scale :][..., :size] - expected
        return bool(difference.abs().max() <= CLOSE * whole.abs().max())

    def _seen(self, length: int, at: int) -> Tensor:
        """Returns which columns of the result depend on column `at` of a strip, (scale length,)."""
        x = self._strip(length)
        x[..., at] = torch.nan
        return self._net(x).isnan().flatten(0, -2).any(0)

    def _strip(self, length: int) -> Tensor:
        shape = 1, self._in_channels, self._thickness, self._whole(length)
        return torch.rand(shape, generator=torch.Generator().manual_seed(0))

    def _whole(self, length: int) -> int:
        return length // self._step * self._step

    def _middle(self, length: int) -> int:
        return self._whole(length // 2)


def _round_up(pixels: int, step: int) -> int:
    return -(-pixels // step) * step


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an operation of `STEERED` runs while the mode is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.saw_steered = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from importing its compiler for this mode, which costs 2 s; an older torch does not ask."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.saw_steered |= any(word in str(func) for word in STEERED)
        return func(*args, **(kwargs or {}))

"""Modules one after another, with taps in between."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor, nn

from densekit.blocks.layers import Transition
from densekit.blocks.parts import is_plain
from densekit.blocks.recompute import recompute

Named = tuple[str, nn.Module]
MADE_AGAIN: list[type[nn.Module]] = [nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]


class Chain(nn.Sequential):
    """A sequence that also returns what its children make.

    With the policy "min" as its attribute `memory` it keeps, where a norm, a ReLU and perhaps a max pool follow each
    other, nothing but the norm's input for the backward pass.
    """

    memory = "speed"

    def forward(self, x: Tensor) -> Tensor:
        return self.tapped(x, ())[1]

    def tapped(self, x: Tensor, names: Collection[str]) -> tuple[list[Tensor], Tensor]:
        """Returns what the children of these names make, in the order of the children, and what the last one makes.

        The tap of a transition is what it reads, after norm and ReLU.
        """
        taps = []
        for run in self._runs():
            found = self._recomputed(run, x, names)
            if found is not None:
                tap, x = found
                taps += [tap] if run[1][0] in names else []
                continue
            for name, module in run:
                if isinstance(module, Transition) and name in names:
                    tap, x = module.both(x)
                else:
                    tap = x = module(x)
                taps += [tap] if name in names else []
        return taps, x

    def _runs(self) -> Iterator[list[Named]]:
        """Yields the children; a norm, a ReLU and a max pool that follow each other come together."""
        children = list(self.named_children())
        while children:
            kinds = [nn.BatchNorm2d if is_plain(module) else type(module) for _, module in children[:3]]
            size = 3 if kinds == MADE_AGAIN else 2 if kinds[:2] == MADE_AGAIN[:2] else 1
            yield children[:size]
            del children[:size]

    def _recomputed(self, run: list[Named], x: Tensor, names: Collection[str]) -> tuple[Tensor, Tensor] | None:
        """Returns what norm and ReLU make, and the whole run; None where it is to be run module by module."""
        if self.memory != "min" or len(run) < 2:
            return None
        norm, *modules = (module for _, module in run)
        if not is_plain(norm):
            return None
        if len(modules) == 1:  # what norm and ReLU make is all there is
            found = recompute(norm, nn.Identity(), modules, x)
            return None if found is None else (found[1], found[1])
        return recompute(norm, modules[1], modules, x, is_tapped=run[1][0] in names)

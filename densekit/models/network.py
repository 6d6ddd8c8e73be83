"""What every network here has."""

from __future__ import annotations

from typing import Self

from torch import nn

from densekit.blocks import optimize


class Network(nn.Module):
    """A network that can be made ready for prediction."""

    def optimize(self) -> Self:
        """Returns a network that predicts the same in less time, for the device that this one is on.

        It is a thing of its own: it cannot be trained, and what changes the weights here does not change it.
        """
        return optimize(self)

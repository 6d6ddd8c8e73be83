"""What every network here has."""

from __future__ import annotations

from typing import ClassVar, Self

from torch import nn

from densekit.blocks import optimize


class Network(nn.Module):
    """A network that can be made ready for prediction.

    Attributes:
        output_name: of the child that makes the result, "" where that is not made by convolutions.
    """

    output_name: ClassVar[str] = ""

    def optimize(self) -> Self:
        """Returns a network that predicts the same in less time, for the device that this one is on.

        It is a thing of its own: it cannot be trained, and what changes the weights here does not change it.
        """
        return optimize(self)

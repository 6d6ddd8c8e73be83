"""Blur kernels: Gaussian, generalized, plateau, and the sinc of a sharp low-pass filter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """One blur.

    Attributes:
        kind: "gaussian", "generalized", "plateau" or "sinc".
        size: odd side in pixels.
        sigma: standard deviations along the two axes, in pixels; unused by a sinc.
        angle: from the x axis to the first of these axes, in radians.
        beta: exponent of generalized and plateau kernels.
        cutoff: of a sinc, in radians per pixel; pi lets everything pass that a pixel grid can hold.
    """

    kind: str
    size: int
    sigma: tuple[float, float] = (1.0, 1.0)
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi

    def weights(self) -> Tensor:
        """Returns the kernel as (1, size, size) float32 of sum 1.

        Source: Real-ESRGAN's forms; the generalized Gaussian of Pascal et al. (2013), the plateau 1 / (1 + d^beta).
        """
        axis = torch.arange(self.size, dtype=torch.float64) - (self.size - 1) / 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        values = self._sinc(x, y) if self.kind == "sinc" else self._bell(x, y)
        return (values / values.sum()).float()[None]

    def _bell(self, x: Tensor, y: Tensor) -> Tensor:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        distance = ((cos * x + sin * y) / self.sigma[0]) ** 2 + ((cos * y - sin * x) / self.sigma[1]) ** 2
        if self.kind == "plateau":
            return 1 / (distance**self.beta + 1)
        return torch.exp(-0.5 * distance**self.beta)

    def _sinc(self, x: Tensor, y: Tensor) -> Tensor:
        radius = torch.hypot(x, y)
        centre = radius == 0
        radius[centre] = 1
        values = self.cutoff * torch.special.bessel_j1(self.cutoff * radius) / (2 * math.pi * radius)
        values[centre] = self.cutoff**2 / (4 * math.pi)  # the limit
        return values

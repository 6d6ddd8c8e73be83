"""What happens to one picture, drawn from a preset: plain numbers, the same wherever the pixels are."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from densekit.datasets.degradation.kernels import Kernel
from densekit.datasets.degradation.presets import KERNEL_SIZES, KERNELS, MODES, Order, Preset, Range
from densekit.datasets.draws import draw_rng

T = TypeVar("T")


@dataclass(frozen=True)
class Noise:
    """Noise of one kind: strength is sigma in levels of 0..255, or the factor of Poisson noise."""

    kind: str
    strength: float
    grey: bool


@dataclass(frozen=True)
class Round:
    """Blur or none, resize by `factor` in `mode`, noise, JPEG of `quality`."""

    blur: Kernel | None
    factor: float
    mode: str
    noise: Noise
    quality: int


@dataclass(frozen=True)
class Recipe:
    """Two rounds and the end: the resize to the final size in `mode`, then `sinc`, both before or after JPEG."""

    first: Round
    second: Round
    mode: str
    sinc: Kernel | None
    sinc_before_jpeg: bool


def draw_recipe(preset: Preset, seed: int) -> Recipe:
    """Returns the recipe that belongs to a seed, 0 to 2**63 - 1."""
    rng = draw_rng(seed, 0)
    return Recipe(
        first=_draw_round(rng, preset.first),
        second=_draw_round(rng, preset.second),
        mode=_pick(rng, MODES),
        sinc=_draw_sinc(rng, None) if rng.random() < preset.final_sinc_rate else None,
        sinc_before_jpeg=rng.random() < preset.sinc_before_jpeg_rate,
    )


def _draw_round(rng: np.random.Generator, order: Order) -> Round:
    blur = _draw_blur(rng, order) if rng.random() < order.blur_rate else None
    lowest, highest = order.resize
    span = _pick(rng, ((1.0, highest), (lowest, 1.0), (1.0, 1.0)), order.resize_rates)
    factor, mode = rng.uniform(*span), _pick(rng, MODES)
    kind = "gaussian" if rng.random() < order.gaussian_rate else "poisson"
    strength = rng.uniform(*(order.gaussian if kind == "gaussian" else order.poisson))
    noise = Noise(kind, strength, grey=rng.random() < order.grey_rate)
    return Round(blur, factor, mode, noise, int(rng.integers(*order.quality, endpoint=True)))


def _draw_blur(rng: np.random.Generator, order: Order) -> Kernel:
    size = _pick(rng, KERNEL_SIZES)
    if rng.random() < order.sinc_rate:
        return _draw_sinc(rng, size)
    name = _pick(rng, tuple(KERNELS), tuple(KERNELS.values()))
    family, _, shape = name.rpartition("_")
    sigma = (rng.uniform(*order.sigma),) * 2
    angle = 0.0
    if shape == "aniso":
        sigma, angle = (sigma[0], rng.uniform(*order.sigma)), rng.uniform(-math.pi, math.pi)
    beta = 1.0
    if family:
        beta = _draw_beta(rng, order.generalized_beta if family == "generalized" else order.plateau_beta)
    return Kernel(family or "gaussian", size, sigma, angle, beta)


def _pick(rng: np.random.Generator, items: Sequence[T], rates: Sequence[float] | None = None) -> T:
    """Returns one of the items, by their rates or each as often."""
    if rates is None:
        return items[int(rng.integers(len(items)))]
    return items[min(bisect.bisect(list(itertools.accumulate(rates)), rng.random()), len(items) - 1)]


def _draw_beta(rng: np.random.Generator, span: Range) -> float:
    """Returns an exponent, as often below 1 as above; it is 1 in half of the cases where the range begins there."""
    return rng.uniform(span[0], 1) if rng.random() < 0.5 else rng.uniform(1, span[1])


def _draw_sinc(rng: np.random.Generator, size: int | None) -> Kernel:
    """Returns a sinc of the size, or of a drawn one for the end, where the cutoff does not depend on it."""
    lowest = math.pi / 5 if size is not None and size >= 13 else math.pi / 3
    return Kernel("sinc", size or _pick(rng, KERNEL_SIZES), cutoff=rng.uniform(lowest, math.pi))

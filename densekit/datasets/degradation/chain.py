"""The steps of a recipe, on the device of the picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from kornia.filters import filter2d
from torch import Tensor

from densekit.datasets.degradation.jpeg import jpeg, luminance
from densekit.datasets.degradation.kernels import Kernel
from densekit.datasets.degradation.presets import REAL_ESRGAN, Preset
from densekit.datasets.degradation.recipes import Noise, Recipe, draw_recipe
from densekit.errors import DataError

_SEEDS = 2**63  # how many there are


def random_seeds(count: int) -> list[int]:
    """Returns `count` seeds from torch's global random state, that of the CPU on every machine."""
    return torch.randint(_SEEDS - 1, (count,)).tolist()


def seed_of(name: str) -> int:
    """Returns the seed that belongs to a name, today as in ten years."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big") % _SEEDS


@torch.no_grad()
def degrade(hr: Tensor, scale: int, seeds: Sequence[int], preset: Preset = REAL_ESRGAN) -> Tensor:
    """Returns low resolution (B, 3, H / scale, W / scale) float32 in [0, 1], in steps of 1/255, laid out as `hr`.

    Each picture is a function of itself and its seed alone: the seed decides which blur, factors, noise and quality,
    the same on every device; the noise itself comes from the device's own generator of that seed. Autocast is off here.

    Args:
        hr: (B, 3, H, W) in [0, 1]; sides that `scale` divides.
        scale: 1 or more.
        seeds: one for each picture, 0 to 2**63 - 1.
        preset: the ranges.

    Raises:
        DataError: sides that `scale` does not divide.

    Source: Wang et al. (ICCVW 2021), sections 3.2 and 3.3. Where this is not their program:
    - They share factors, modes and kinds of noise over a batch, and mix batches in a pool of 180 pairs, by which a step
      depends on those before it. Here each picture has its own, and there is no pool.
    - They degrade 400 pixels and crop 256 of them; here the whole crop is kept, with the mirrored border of the blur.
    - Their first resize drops a fraction of a pixel at the far end, which shifts the result against the original: by
      0.046 pixels of low resolution in each direction, the mean of 400 crops of BSDS at x4. Here each resize goes from
      border to border, and that mean is 0.002. `tools/bench_degradation.py` measures both.
    - JPEG has whole-numbered tables and interpolated chroma, as files have.
    """
    if hr.shape[-2] % scale or hr.shape[-1] % scale:
        raise DataError(
            f"pictures of {hr.shape[-2]}x{hr.shape[-1]} cannot be degraded by {scale}; crop them to a multiple"
        )
    with torch.autocast(hr.device.type, enabled=False):
        pictures = hr.float().contiguous()
        lows = [
            follow(draw_recipe(preset, seed), picture[None], scale, torch.Generator(hr.device).manual_seed(seed))
            for picture, seed in zip(pictures, seeds, strict=True)
        ]
    layout = torch.channels_last if hr.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return torch.cat(lows).contiguous(memory_format=layout)


def follow(recipe: Recipe, x: Tensor, scale: int, generator: torch.Generator) -> Tensor:
    """Returns the picture (1, 3, H, W) after all steps of its recipe: (1, 3, H / scale, W / scale)."""
    final = (x.shape[-2] // scale, x.shape[-1] // scale)
    one, two = recipe.first, recipe.second
    x = resize(blur(x, one.blur), (x.shape[-2] * one.factor, x.shape[-1] * one.factor), one.mode)
    x = jpeg(add_noise(x, one.noise, generator), one.quality)
    x = resize(blur(x, two.blur), (final[0] * two.factor, final[1] * two.factor), two.mode)
    x = add_noise(x, two.noise, generator)
    if recipe.sinc_before_jpeg:
        x = jpeg(blur(resize(x, final, recipe.mode), recipe.sinc).clamp(0, 1), two.quality)
    else:
        x = blur(resize(jpeg(x, two.quality), final, recipe.mode), recipe.sinc)
    return (x * 255).round().clamp(0, 255) / 255


def blur(x: Tensor, kernel: Kernel | None) -> Tensor:
    """Returns (B, 3, H, W) filtered; the border is mirrored, or repeated in a picture smaller than half a kernel."""
    if kernel is None:
        return x
    border = "reflect" if min(x.shape[-2:]) > kernel.size // 2 else "replicate"
    return filter2d(x, kernel.weights(), border)


def resize(x: Tensor, size: tuple[float, float], mode: str) -> Tensor:
    """Returns (B, 3, *size), rounded down to whole pixels, one at least; nothing hinders aliasing, as in the wild."""
    height, width = (max(int(side), 1) for side in size)
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode=mode)


def add_noise(x: Tensor, noise: Noise, generator: torch.Generator) -> Tensor:
    """Returns (1, 3, H, W) with noise, in [0, 1]."""
    if noise.kind == "gaussian":
        shape = (1, 1 if noise.grey else 3, *x.shape[-2:])
        added = torch.randn(shape, generator=generator, device=x.device) / 255
    else:
        levels = ((luminance(x) if noise.grey else x) * 255).round().clamp(0, 255)
        photons = 2 ** torch.log2(_count(levels)).ceil()  # of the brightest pixel: the more levels, the finer the noise
        added = torch.poisson(levels / 255 * photons, generator) / photons - levels / 255
    return (x + noise.strength * added).clamp(0, 1)


def _count(levels: Tensor) -> Tensor:
    """Returns how many of the levels 0..255 occur, without waiting for the device."""
    seen = torch.zeros(256, device=levels.device)
    seen[levels.long().flatten()] = 1
    return seen.sum()

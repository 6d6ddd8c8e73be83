"""The degradation that Real-ESRGAN trained with, from the unpacked source of BasicSR 1.4.2, for one picture at a time.

`pip download basicsr==1.4.2 --no-deps --no-binary :all:` fetches it. Its three files are loaded by themselves: the
package as a whole needs a torchvision of 2023. The order of the steps is that of its model, realesrnet_model.py.
"""

# ruff: noqa: NPY002, S311  (it draws from these global states, which a seed sets)

from __future__ import annotations

import importlib.util
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.datasets.degradation.presets import KERNEL_SIZES, KERNELS, MODES, REAL_ESRGAN, Order


def load_peer(folder: Path, scale: int) -> Callable[[Tensor, int], Tensor]:
    """Returns the function (picture (1, 3, H, W) in [0, 1], seed) -> low resolution."""
    from torchvision.transforms import functional

    gone = types.ModuleType("torchvision.transforms.functional_tensor")
    gone.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules.setdefault(gone.__name__, gone)
    parts, filters, codec = (
        _load(folder / "basicsr" / path)
        for path in ("data/degradations.py", "utils/img_process_util.py", "utils/diffjpeg.py")
    )
    jpeg = codec.DiffJPEG(differentiable=False)

    def kernel(order: Order) -> Tensor:
        size = random.choice(KERNEL_SIZES)
        if np.random.uniform() < order.sinc_rate:
            weights = parts.circular_lowpass_kernel(np.random.uniform(np.pi / (3 if size < 13 else 5), np.pi), size)
        else:
            weights = parts.random_mixed_kernels(
                list(KERNELS), list(KERNELS.values()), size, order.sigma, order.sigma, (-np.pi, np.pi),
                order.generalized_beta, order.plateau_beta, noise_range=None,
            )  # fmt: skip
        return torch.tensor(np.pad(weights, (21 - size) // 2), dtype=torch.float32)[None]

    def factor(order: Order) -> float:
        spans = ((1, order.resize[1]), (order.resize[0], 1), (1, 1))
        return np.random.uniform(*random.choices(spans, order.resize_rates)[0])

    def noisy(x: Tensor, order: Order) -> Tensor:
        if np.random.uniform() < order.gaussian_rate:
            return parts.random_add_gaussian_noise_pt(x, order.gaussian, order.grey_rate)
        return parts.random_add_poisson_noise_pt(x, order.poisson, order.grey_rate)

    def squeezed(x: Tensor, order: Order) -> Tensor:
        return jpeg(x.clamp(0, 1), quality=x.new_zeros(1).uniform_(*order.quality))

    def fitted(x: Tensor, size: tuple[int, int]) -> Tensor:
        x = F.interpolate(x, size, mode=random.choice(MODES))
        if np.random.uniform() >= REAL_ESRGAN.final_sinc_rate:
            return x
        cutoff, taps = np.random.uniform(np.pi / 3, np.pi), random.choice(KERNEL_SIZES)
        weights = parts.circular_lowpass_kernel(cutoff, taps, pad_to=21)
        return filters.filter2D(x, torch.tensor(weights, dtype=torch.float32)[None])

    @torch.no_grad()
    def degrade(x: Tensor, seed: int) -> Tensor:
        for use in (random.seed, np.random.seed, torch.manual_seed):
            use(seed)
        first, second = REAL_ESRGAN.first, REAL_ESRGAN.second
        final = (x.shape[-2] // scale, x.shape[-1] // scale)
        x = filters.filter2D(x, kernel(first))
        x = F.interpolate(x, scale_factor=factor(first), mode=random.choice(MODES))
        x = squeezed(noisy(x, first), first)
        if np.random.uniform() < second.blur_rate:
            x = filters.filter2D(x, kernel(second))
        ratio = factor(second)
        x = F.interpolate(x, (int(final[0] * ratio), int(final[1] * ratio)), mode=random.choice(MODES))
        x = noisy(x, second)
        x = squeezed(fitted(x, final), second) if np.random.uniform() < 0.5 else fitted(squeezed(x, second), final)
        return (x * 255).round().clamp(0, 255) / 255

    return degrade


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

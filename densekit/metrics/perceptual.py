"""LPIPS and DISTS, distances learned by networks that others publish; their packages are an extra."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from densekit.errors import ConfigError, DataError
from densekit.metrics.sr_protocols import as_array, check_picture

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

NETWORKS = ("alex", "vgg", "squeeze")
LEAST = 32  # pixels: less does not survive the networks' poolings


def lpips(sr: NDArray[Any], hr: NDArray[Any], *, network: str = "alex") -> float:
    """Returns the LPIPS distance (version 0.1) of two pictures: 0 for equal ones, lower is better.

    Computed by the package `lpips`, which fetches the weights of its network from torchvision's host when first used.
    Nothing is cropped, as in the reports of BasicSR's and ESRGAN's users; figures of different networks do not compare.

    Args:
        sr: (H, W, 3), (H, W, 1) or (H, W) uint8, at least 32 x 32 pixels.
        hr: The original, same shape.
        network: `alex` (most reports), `vgg` or `squeeze`.

    Raises:
        ConfigError: an unknown network, a package that is not installed, or weights that cannot be had.
        DataError: pictures of unequal shape, not uint8, or too small.

    Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018.
    """
    if network not in NETWORKS:
        raise ConfigError(f"LPIPS network {network!r} is unknown; expected one of {', '.join(NETWORKS)}")
    a, b = _inputs(sr, hr)
    return _distance(_build("lpips", "LPIPS", net=network, version="0.1", verbose=False), a * 2 - 1, b * 2 - 1)


def dists(sr: NDArray[Any], hr: NDArray[Any]) -> float:
    """Returns the DISTS distance of two pictures: 0 for equal ones, lower is better.

    Computed by the package `piq`, which fetches its weights when first used. Nothing is cropped or resized.
    Arguments and errors are those of `lpips`.

    Source: Ding et al., Image Quality Assessment: Unifying Structure and Texture Similarity, 2020.
    """
    a, b = _inputs(sr, hr)
    return _distance(_build("piq", "DISTS"), a, b)


def _inputs(sr: NDArray[Any], hr: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Returns both pictures as (1, 3, H, W) float32 in 0..1."""
    sr, hr = as_array(sr), as_array(hr)
    if sr.shape != hr.shape:
        raise DataError(
            f"found a result of shape {sr.shape} and an original of shape {hr.shape}; expected equal shapes"
        )
    return _input(sr, "result"), _input(hr, "original")


def _input(picture: NDArray[Any], name: str) -> Tensor:
    check_picture(picture, name)
    if min(picture.shape[:2]) < LEAST or (picture.ndim == 3 and picture.shape[2] not in (1, 3)):
        raise DataError(
            f"found pictures of shape {picture.shape}; expected (H, W, 3), (H, W, 1) or (H, W), at least "
            f"{LEAST} pixels each way"
        )
    import torch

    colour = np.broadcast_to(np.atleast_3d(picture), (*picture.shape[:2], 3))
    return torch.from_numpy(colour.transpose(2, 0, 1)[None] / np.float32(255))


def _distance(network: Module, a: Tensor, b: Tensor) -> float:
    import torch

    with torch.inference_mode():
        return float(network(a, b))


@cache
def _build(package: str, name: str, **arguments: Any) -> Module:
    """Returns the network `name` of `package` with its weights."""
    try:
        make = getattr(importlib.import_module(package), name)
    except ImportError as error:
        raise ConfigError(f"{name} needs the package {package}; run: pip install 'densekit[metrics]'") from error
    try:
        network: Module = make(**arguments).eval()
    except Exception as error:  # no network, no space, a changed host: the package lets all of them through
        raise ConfigError(
            f"{package} could not make {name} ({type(error).__name__}: {_line(error)}); its weights are fetched "
            "when first used: run once with a connection"
        ) from error
    return network


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

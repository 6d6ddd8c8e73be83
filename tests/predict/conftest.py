from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from densekit.predict import Upscaler, load
from densekit.resize import imresize


@pytest.fixture(scope="session")
def upscaler(tiny_sr) -> Upscaler:
    return load(tiny_sr, device="cpu")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def smooth(rng) -> Callable[..., np.ndarray]:
    """Makes random uint8 pixels (H, W, C) with structure at several sizes."""

    def make(height: int, width: int, channels: int = 3) -> np.ndarray:
        image = sum(imresize(rng.random((size, size, channels)), None, size=(height, width)) for size in (3, 9, 27))
        return (255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)

    return make

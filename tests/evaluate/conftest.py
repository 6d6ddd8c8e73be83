from __future__ import annotations

import numpy as np
import pytest

from densekit.image import Picture, write_image, write_mask
from tests.training_data import make_picture


@pytest.fixture
def write_pictures():
    """Writes coloured pictures of given sizes (height, width) into a folder and returns it."""

    def write(folder, sizes, seed=0):
        for index, (name, (height, width)) in enumerate(sizes.items()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_image(folder / name, Picture(make_picture(height, width, seed + index)))
        return folder

    return write


@pytest.fixture
def write_masks():
    """Writes masks of random classes, some pixels void, into a folder and returns it."""

    def write(folder, sizes, num_classes=3, void=255, seed=0):
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        for name, size in sizes.items():
            ids = rng.integers(0, num_classes, size).astype(np.uint8)
            ids[rng.random(size) < 0.1] = void
            write_mask(folder / name, ids)
        return folder

    return write

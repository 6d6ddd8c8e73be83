from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2ycbcr

from densekit.color import rgb_to_y
from densekit.errors import DataError


def picture(*shape: int):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_luma_equals_that_of_scikit_image():
    rgb = picture(40, 50, 3)
    assert rgb_to_y(rgb).dtype == np.float64
    np.testing.assert_allclose(rgb_to_y(rgb), rgb2ycbcr(rgb)[..., 0], atol=2e-5)  # float32 on the way, on purpose


def test_black_is_16_and_white_is_235():
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    np.testing.assert_allclose(rgb_to_y(ends), [[16, 235]], atol=1e-5)


def test_luma_is_not_rounded():
    y = rgb_to_y(picture(40, 50, 3))
    assert np.mean(np.abs(y - np.rint(y)) > 0.01) > 0.9


def test_grey_counts_as_three_equal_channels():
    grey = picture(20, 30)
    expected = rgb_to_y(np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_allclose(rgb_to_y(grey), expected, atol=2e-5)
    np.testing.assert_array_equal(rgb_to_y(grey[..., None]), rgb_to_y(grey))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_taken_as_0_to_255(dtype):
    rgb = picture(20, 30, 3)
    np.testing.assert_allclose(rgb_to_y(rgb.astype(dtype)), rgb_to_y(rgb), atol=2e-5)
    np.testing.assert_allclose(rgb_to_y(rgb[..., 0].astype(dtype)), rgb_to_y(rgb[..., 0]), atol=2e-5)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (picture(4, 4, 3).astype(np.uint16), "cannot take the luma of uint16; expected uint8, or float in 0..255"),
        (picture(4, 4, 4), "cannot take the luma of shape (4, 4, 4); expected (H, W, 3), (H, W, 1) or (H, W)"),
        (picture(4), "cannot take the luma of shape (4,)"),
    ],
)
def test_other_arrays_are_refused(array, text):
    with pytest.raises(DataError) as caught:
        rgb_to_y(array)
    assert text in str(caught.value)

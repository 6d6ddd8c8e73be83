from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from densekit.errors import ConfigError, ImageError
from densekit.image import Picture, write_image


@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 1), (9, 13, 2), (9, 13, 3), (9, 13, 4), (1, 1, 3), (1, 40, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_array_comes_back_with_its_dtype_and_channels(upscaler, rng, shape, dtype):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    image = (rng.random(shape) * top).astype(dtype)
    y = upscaler.predict(image)
    assert y.dtype == dtype
    assert y.shape == (2 * shape[0], 2 * shape[1], *shape[2:])


@pytest.mark.parametrize(
    ("mode", "result"),
    [
        *((mode, mode) for mode in ("L", "LA", "RGB", "RGBA", "I;16", "F")),
        *(("1", "L"), ("P", "RGB"), ("CMYK", "RGB"), ("YCbCr", "RGB"), ("La", "LA"), ("RGBa", "RGBA"), ("RGBX", "RGB")),
    ],
)
def test_a_pil_image_comes_back_as_a_pil_image(upscaler, rng, mode, result, smooth):
    image = Image.fromarray(smooth(10, 17))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65_536, (10, 17), np.uint16))
    elif mode in ("La", "RGBa"):
        image = image.convert(mode.upper()).convert(mode)
    else:
        image = image.convert(mode)
    y = upscaler.predict(image)
    assert (y.mode, y.size) == (result, (34, 20))


def test_a_pil_image_keeps_its_profile_and_exif(upscaler, smooth):
    image = Image.fromarray(smooth(4, 5))
    image.info = {"icc_profile": b"profile", "exif": b"Exif\0\0", "dpi": (72, 72)}
    assert upscaler.predict(image).info == {"icc_profile": b"profile", "exif": b"Exif\0\0"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 8, 9), (1, 8, 9), (2, 3, 8, 9), (2, 1, 8, 9)])
def test_a_tensor_comes_back_as_a_tensor_between_0_and_1(upscaler, shape, dtype):
    y = upscaler.predict(torch.rand(shape, dtype=dtype))
    assert y.dtype == dtype
    assert y.shape == (*shape[:-2], 16, 18)
    assert 0 <= y.min() < y.max() <= 1


def test_a_batch_gives_what_its_images_give_alone(upscaler):
    x = torch.rand(3, 3, 12, 10)
    alone = torch.stack([upscaler.predict(image) for image in x])
    assert (upscaler.predict(x) - alone).abs().max() < 1e-6


def test_a_path_gives_the_array_that_its_pixels_give(upscaler, rng, tmp_path, smooth):
    pixels, alpha = smooth(11, 12), rng.integers(0, 256, (11, 12), np.uint8)
    write_image(tmp_path / "a.png", Picture(pixels, alpha))
    expected = upscaler.predict(np.dstack((pixels, alpha)))
    assert np.array_equal(upscaler.predict(tmp_path / "a.png"), expected)
    assert np.array_equal(upscaler.predict(str(tmp_path / "a.png")), expected)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (7, ConfigError, "cannot predict on a int; expected a path, a PIL image, a NumPy array or a tensor"),
        (np.ones((3, 8, 9), np.uint8), ImageError, "an array of shape (3, 8, 9); expected (H, W) or (H, W, C) with 1"),
        (np.ones((0, 8, 3), np.uint8), ImageError, "an array of shape (0, 8, 3); expected"),
        (np.ones((4, 8, 3)), ImageError, "an array of float64; expected uint8 0..255, uint16 0..65535 or float32 0..1"),
        (np.full((4, 8), np.nan, np.float32), ImageError, "an array with NaN or infinite values; expected finite ones"),
        (torch.ones(3, 4, 4, dtype=torch.uint8), ImageError, "a tensor of torch.uint8; expected float values in 0..1"),
        (torch.ones(4, 4), ImageError, "a tensor of shape (4, 4); expected (C, H, W) or (B, C, H, W)"),
        (torch.ones(4, 4, 4), ImageError, "a tensor of shape (4, 4, 4); expected (C, H, W) or (B, C, H, W)"),
        (torch.full((3, 4, 4), torch.inf), ImageError, "a tensor with NaN or infinite values; expected finite ones"),
        (Image.new("I", (4, 4)), ImageError, "a PIL image of mode I; expected 8 or 16 bits or float"),
        ("no/such.png", ImageError, "no/such.png: no such file; check the name"),
    ],
)
def test_what_is_no_image_is_one_line(upscaler, image, kind, message):
    with pytest.raises(kind) as caught:
        upscaler.predict(image)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densekit.report import Row
from densekit.report.pictures import MAX_BYTES, _worst_window, crop, encode, load, thumbnails
from tests.report.sample import sr_pictures


def decode(encoded) -> np.ndarray:
    start = "data:image/webp;base64,"
    assert encoded.uri.startswith(start)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded.uri[len(start) :]))).convert("RGB"))


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // width, 255 * y // height, (x + y) % 256], axis=2).astype(np.uint8)


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99)
)
def test_the_worst_window_is_the_one_with_the_largest_sum(height, width, h, w, step, seed):
    h, w = min(h, height), min(w, width)
    difference = np.random.default_rng(seed).integers(0, 9, (height, width), np.int32)
    left, top = _worst_window(difference, w, h, step)
    sums = {
        (x, y): difference[y : y + h, x : x + w].sum()
        for y in range(0, height - h + 1, step)
        for x in range(0, width - w + 1, step)
    }
    assert sums[left, top] == max(sums.values())


def test_crops_lie_where_the_result_is_wrong_and_at_the_same_place_in_all_pictures():
    hr = smooth(600, 800)
    sr = hr.copy()
    sr[400:420, 600:640] ^= 255
    cut = crop({"lr": hr[::4, ::4], "sr": sr, "hr": hr, "error": sr}, "sr")
    assert (cut.width, cut.height, cut.whole) == (256, 192, (800, 600))
    assert cut.left <= 600
    assert cut.left + 256 >= 640
    assert cut.top <= 400
    assert cut.top + 192 >= 420
    assert cut.left % 4 == cut.top % 4 == 0
    inside = np.s_[cut.top : cut.top + 192, cut.left : cut.left + 256]
    for key, pixels in (("sr", sr), ("hr", hr)):
        assert cut.parts[key].is_exact
        np.testing.assert_array_equal(decode(cut.parts[key]), pixels[inside])
    np.testing.assert_array_equal(
        decode(cut.parts["lr"]), hr[::4, ::4][inside[0].start // 4 :, inside[1].start // 4 :][:48, :64]
    )
    place = decode(cut.place)
    assert place.shape == (192, 256, 3)


def test_a_small_picture_is_shown_whole():
    cut = crop(sr_pictures(height=30, width=40), "sr")
    assert (cut.left, cut.top, cut.width, cut.height) == (0, 0, 40, 30)
    assert cut.place is None


def test_an_input_of_no_whole_scale_is_left_out_of_the_comparison():
    pictures = sr_pictures(height=31, width=41, scale=1)
    cut = crop({**pictures, "lr": np.zeros((10, 13, 3), np.uint8)}, "sr")
    assert set(cut.parts) == {"bicubic", "sr", "hr", "error"}


def test_a_single_pixel_has_a_crop():
    assert crop(sr_pictures(height=1, width=1, scale=1), "sr").width == 1


def test_pictures_are_exact_where_that_is_small_and_never_larger_than_allowed():
    exact = encode(smooth(192, 256))
    assert exact.is_exact
    np.testing.assert_array_equal(decode(exact), smooth(192, 256))
    noise = encode(np.random.default_rng(0).integers(0, 256, (384, 512, 3), np.uint8))
    assert not noise.is_exact
    assert (noise.width, noise.height) == (512, 384)
    assert len(base64.b64decode(noise.uri.split(",")[1])) <= MAX_BYTES


def test_thumbnails_are_the_result_and_its_error():
    found = dict(thumbnails(sr_pictures(height=300, width=200), "sr"))
    assert list(found) == ["sr", "error"]
    assert (found["sr"].width, found["sr"].height) == (48, 72)
    assert [key for key, _ in thumbnails({"image": smooth(20, 20)}, "seg")] == ["image"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"sr": np.zeros((4, 4), np.uint8)}, "picture 'sr' is (4, 4) uint8; expected (H, W, 3) uint8"),
        ({"sr": np.zeros((4, 4, 3))}, "picture 'sr' is (4, 4, 3) float64; expected (H, W, 3) uint8"),
        ({"sr": np.zeros((0, 4, 3), np.uint8)}, "picture 'sr' is (0, 4, 3) uint8; expected (H, W, 3) uint8"),
        (
            {"sr": np.zeros((4, 4, 3), np.uint8), "hr": np.zeros((4, 5, 3), np.uint8)},
            "its pictures have the sizes [(4, 4, 3), (4, 5, 3)]; expected one",
        ),
        ({}, "no pictures were kept"),
        ({"lr": np.zeros((4, 4, 3), np.uint8)}, "no pictures were kept"),
    ],
)
def test_pictures_that_cannot_be_shown_are_explained(made, message):
    assert load(Row("a", {}, pictures=lambda: made)) == message


def test_a_row_without_pictures_says_so_and_a_failure_names_its_kind():
    def fail():
        raise RuntimeError("out of memory")

    assert load(Row("a", {})) == "no pictures were kept"
    assert load(Row("a", {}, pictures=fail)) == "its pictures could not be made again (RuntimeError: out of memory)"

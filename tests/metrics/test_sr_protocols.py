"""What each protocol compares, against the tools that report it so and against figures measured on real pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import kornia
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from densekit.errors import DataError
from densekit.metrics import PROTOCOLS, psnr, ssim
from densekit.metrics.sr_protocols import compared
from densekit.resize import imresize

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")

RED_GREEN_BLUE = np.array([65.481, 128.553, 24.966])


def read(path: Path, mode: str | None = "RGB"):
    with Image.open(path) as image:
        return np.array(image.convert(mode) if mode else image)


def cropped(image, scale: int):
    height, width = (n - n % scale for n in image.shape[:2])
    return image[:height, :width]


def colours(seed: int = 0):
    return np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)


def plane(name: str, picture):
    return PROTOCOLS[name].values(picture)


@pytest.fixture(scope="module")
def astronaut():
    hr = data.astronaut()
    return imresize(imresize(hr, 1 / 4, "matlab-uint8"), 4, "matlab-uint8"), hr


def test_every_protocol_is_listed_under_its_own_name_and_says_who_reports_it():
    assert [protocol.name for protocol in PROTOCOLS.values()] == list(PROTOCOLS)
    assert next(iter(PROTOCOLS)) == "rdn-y"
    assert all(20 < len(protocol.description) < 110 for protocol in PROTOCOLS.values())


def test_borders_are_those_of_the_tools():
    borders = {name: protocol.border(4) for name, protocol in PROTOCOLS.items()}
    assert borders == dict.fromkeys(PROTOCOLS, 4) | {"edsr-div2k": 10, "no-crop-y": 0}


def test_basicsr_y_takes_the_steps_of_its_bgr2ycbcr():
    picture = colours()
    unit = picture.astype(np.float32) / 255.0
    luma = (np.dot(unit, [65.481, 128.553, 24.966]) + 16.0) / 255.0
    expected = luma.astype(np.float32) * 255.0
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(plane("basicsr-y", picture), expected.astype(np.float64))


def test_kair_y_and_matlab_y_are_whole_and_differ_at_ties_alone():
    picture = colours()
    kair, matlab = plane("kair-y", picture), plane("matlab-y", picture)
    np.testing.assert_array_equal(kair, (np.dot(picture, [65.481, 128.553, 24.966]) / 255.0 + 16.0).round())
    exact = picture.astype(np.int64) @ np.array([65481, 128553, 24966])  # in 1 / 255000
    is_tie = exact % 255000 == 127500
    assert (kair == matlab)[~is_tie].all()
    np.testing.assert_array_equal(matlab[is_tie], (exact[is_tie] + 127500) // 255000 + 16)
    assert matlab.min() >= 16
    assert matlab.max() <= 235


def test_a_tie_is_rounded_up_by_matlab_and_to_even_by_kair():
    ties = np.array([[0, 204, 68], [1, 173, 225], [2, 44, 141], [4, 194, 109], [5, 65, 25], [250, 190, 230]])
    exact = ties @ np.array([65481, 128553, 24966])
    assert (exact % 255000 == 127500).all()
    picture, below = ties[None].astype(np.uint8), exact // 255000 + 16
    np.testing.assert_array_equal(plane("matlab-y", picture)[0], below + 1)
    assert 0 < (plane("kair-y", picture)[0] == below).mean() < 1


def test_opencv_y_is_what_opencv_gives_and_within_one_of_pillow():
    picture = colours()
    np.testing.assert_array_equal(plane("opencv-y", picture), cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb)[..., 0])
    pillow = np.asarray(Image.fromarray(picture).convert("YCbCr"), np.float64)[..., 0]
    assert np.abs(plane("opencv-y", picture) - pillow).max() <= 1


def test_full_range_y_is_what_kornia_gives():
    picture = colours()
    tensor = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float64))
    expected = kornia.color.rgb_to_y(tensor / 255)[0, 0].numpy() * 255
    np.testing.assert_allclose(plane("full-range-y", picture), expected, atol=1e-9)


def test_edsr_y_is_the_luma_up_to_its_short_coefficients():
    np.testing.assert_allclose(plane("edsr-y", colours()), plane("rdn-y", colours()), atol=2e-3)
    one_red = np.zeros((1, 1, 3), np.uint8)
    one_red[..., 0] = 255
    assert plane("edsr-y", one_red)[0, 0] - plane("yjn870-y", one_red)[0, 0] == pytest.approx(255 / 256)


def test_grey_y_takes_grey_samples_as_they_are_and_the_others_as_three_channels():
    grey = colours()[..., :1]
    np.testing.assert_array_equal(plane("grey-y", grey), grey)
    np.testing.assert_array_equal(plane("grey-y", grey[..., 0]), grey[..., 0])
    np.testing.assert_array_equal(plane("grey-y", colours()), plane("rdn-y", colours()))
    for name in PROTOCOLS.keys() - {"grey-y", "rgb", "edsr-div2k"}:
        np.testing.assert_allclose(plane(name, grey), plane(name, grey.repeat(3, axis=2)), atol=1e-6)


def test_grey_y_gains_the_decibels_by_which_luma_is_narrower():
    sr, hr = (colours(seed)[..., :1] // 8 + 90 for seed in (0, 1))
    difference = psnr(sr, hr, protocol="rdn-y", scale=2) - psnr(sr, hr, protocol="grey-y", scale=2)
    assert difference == pytest.approx(20 * np.log10(255 / 219), abs=1e-5)


@pytest.mark.parametrize(
    ("protocol", "decibels", "similarity"),
    [
        ("rdn-y", 26.8382, 0.84269),
        ("matlab-y", 26.8382 - 0.0035, 0.84269 - 0.0010),
        ("opencv-y", 26.8382 - 1.326, None),
        ("full-range-y", 26.8382 + 20 * np.log10(219 / 255), None),  # the same error, in a wider range
    ],
)
def test_the_astronaut_scores_as_measured(astronaut, protocol, decibels, similarity):
    assert psnr(*astronaut, protocol=protocol, scale=4) == pytest.approx(decibels, abs=1e-3)
    if similarity is not None:
        assert ssim(*astronaut, protocol=protocol, scale=4) == pytest.approx(similarity, abs=1e-4)


@needs_shared_data
@pytest.mark.parametrize(
    ("protocol", "of_x2", "of_x4"),
    [
        ("rdn-y", 38.242, 32.469),
        ("rgb", 36.04, 30.54),
        ("full-range-y", 36.92, 31.15),
        ("opencv-y", 36.871, 31.138),
        ("no-crop-y", 38.22, 32.37),
        ("edsr-div2k", 36.030, 30.613),
        ("edsr-y", 38.242, 32.469),
        ("yjn870-y", 38.283, 32.510),
        ("kair-y", 38.156, 32.448),
        ("matlab-y", 38.156, 32.448),
        ("basicsr-y", 38.242, 32.469),
    ],
)
def test_the_pictures_of_the_rdn_authors_score_as_each_tool_would_report(protocol, of_x2, of_x4):
    for scale, expected in ((2, of_x2), (4, of_x4)):
        scores = []
        for path in sorted((SHARED / "rdn_set5_sr" / f"x{scale}").glob("*.png")):
            hr = cropped(read(SHARED / "set5" / "HR" / path.name), scale)
            scores.append(psnr(read(path), hr, protocol=protocol, scale=scale))
        assert len(scores) == 5
        assert np.mean(scores) == pytest.approx(expected, abs=6e-3)


@needs_shared_data
@pytest.mark.parametrize(
    ("scale", "replicated", "as_y"), [(2, 30.326, 30.232), (3, 27.634, 27.539), (4, 26.091, 25.997)]
)
def test_set14_scores_by_both_treatments_of_its_grey_picture(scale, replicated, as_y):
    scores = []
    for path in sorted((SHARED / "set14" / f"LRx{scale}").glob("*.png")):
        hr = cropped(read(SHARED / "set14" / "HR" / path.name, None), scale)
        sr = imresize(read(path, None), scale)
        scores.append([psnr(sr, hr, protocol=protocol, scale=scale) for protocol in ("rdn-y", "grey-y")])
    assert len(scores) == 14
    assert np.mean(scores, axis=0) == pytest.approx([replicated, as_y], abs=6e-4)


def test_pictures_of_two_channels_have_no_luma():
    with pytest.raises(DataError, match=r"cannot take the luma of shape \(6, 6, 2\); expected"):
        compared(np.zeros((8, 8, 2), np.uint8), np.zeros((8, 8, 2), np.uint8), "kair-y", 1, 1)

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densekit.errors import ConfigError, DataError
from densekit.resize import MODES, bicubic_phases, imresize, tensors
from tools.bench_resize import SCALES, SHAPES, measure, resize_by_loop, rounds_of

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")


def picture(*shape: int, dtype=np.uint8, seed: int = 0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "u":
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    return rng.random(shape).astype(dtype)


def read(path: Path):
    with Image.open(path) as image:
        return np.array(image)


def numbers(text: str):
    return np.array([[int(word) for word in row.split()] for row in text.split("/")])


FORMULA = np.array([[(37 * r + 91 * c + 5 * (r * c) ** 2) % 256 for c in range(12)] for r in range(8)], dtype=np.uint8)
KNOWN = {  # computed with code that reproduces the files MATLAB wrote
    ("benchmark", 1 / 2): "78 132 141 131 139 165 / 146 120 123 139 143 158 / "
    "158 100 118 137 108 106 / 131 130 150 124 108 158",
    ("benchmark", 1 / 3): "108 132 133 161 / 145 110 134 122 / 110 159 115 134",
    ("benchmark", 1 / 4): "115 130 148 / 131 129 125",
    ("matlab-double", 1 / 2): "70 129 139 129 138 168 / 142 120 123 139 143 157 / "
    "160 100 118 137 108 109 / 121 132 154 123 107 161",
    ("matlab-double", 1 / 3): "102 132 133 161 / 145 112 133 123 / 118 151 116 141",
    ("matlab-double", 1 / 4): "114 130 149 / 133 129 127",
    ("matlab-uint8", 1 / 2): "70 129 139 129 138 168 / 141 120 123 139 143 156 / "
    "160 100 118 137 108 109 / 121 132 154 123 106 161",
    ("matlab-uint8", 1 / 3): "101 132 133 161 / 145 112 133 123 / 118 151 116 141",
    ("matlab-uint8", 1 / 4): "113 130 149 / 133 129 127",
}


@pytest.mark.parametrize(("mode", "scale"), KNOWN)
def test_shrinking_gives_the_known_answers(mode, scale):
    np.testing.assert_array_equal(imresize(FORMULA, scale, mode), numbers(KNOWN[mode, scale]))


@pytest.mark.parametrize(
    ("mode", "row", "total"),
    [
        ("benchmark", [0, 16, 64, 116, 174, 148, 41, 15], 50132),
        ("matlab-double", [0, 13, 62, 116, 172, 147, 39, 13], 50060),
        ("matlab-uint8", [0, 16, 63, 115, 173, 147, 39, 12], 50111),
    ],
)
def test_doubling_gives_the_known_answers(mode, row, total):
    doubled = imresize(FORMULA, 2, mode)
    assert doubled[0, :8].tolist() == row
    assert int(doubled.sum(dtype=np.int64)) == total


@needs_shared_data
def test_benchmark_reproduces_every_published_lr_file():
    files = wrong = 0
    for folder in ("set5", "set14"):
        for scale in (2, 3, 4):
            for path in sorted((SHARED / folder / f"LRx{scale}").glob("*.png")):
                hr = read(SHARED / folder / "HR" / path.name)
                height, width = (n - n % scale for n in hr.shape[:2])
                wrong += np.count_nonzero(imresize(hr[:height, :width], 1 / scale) != read(path))
                files += 1
    assert (files, wrong) == (57, 0)


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "scale", "allowed"),
    [("down_x2", 1 / 2, 1), ("down_x3", 1 / 3, 0), ("down_x4", 1 / 4, 0), ("up_x2", 2, 45)],
)
def test_matlab_double_reproduces_what_matlab_wrote(name, scale, allowed):
    folder = SHARED / "matlab_imresize"
    found = imresize(read(folder / "baboon.png"), scale, "matlab-double").astype(int)
    difference = np.abs(found - read(folder / f"baboon_{name}_matlab.png"))
    assert np.count_nonzero(difference) <= allowed
    assert difference.max() <= 1  # what is left are ties


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 1 / 8, 0.37, 1.7, 2, 3, 4])
@pytest.mark.parametrize("shape", [(41, 300), (5, 3, 3), (70, 37, 3)])
def test_every_mode_equals_its_loop_over_rows(mode, scale, shape):
    image = picture(*shape)
    expected = resize_by_loop(image, (scale, scale), MODES[mode].border, MODES[mode].rounding)
    np.testing.assert_array_equal(imresize(image, scale, mode), expected)


@pytest.mark.parametrize("scale", [1 / 3, 0.73])
def test_no_sample_of_a_large_picture_suffers_from_short_arithmetic(scale):
    image = picture(700, 700)  # at 0.73, float32 would round a handful of these the wrong way
    np.testing.assert_array_equal(imresize(image, scale), resize_by_loop(image, (scale, scale), "clamp", "each-pass"))


@pytest.mark.parametrize("mode", MODES)
def test_uint16_is_rounded_to_its_own_range(mode):
    image = picture(20, 30, 3, dtype=np.uint16)
    for scale in (0.37, 1.7):
        expected = resize_by_loop(image, (scale, scale), MODES[mode].border, MODES[mode].rounding)
        np.testing.assert_array_equal(imresize(image, scale, mode), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_pictures_are_neither_rounded_nor_clipped(dtype):
    image = (picture(20, 30, 3, dtype=dtype) > 0.5).astype(dtype)
    result = imresize(image, 2)
    assert result.dtype == dtype
    assert result.min() < -0.05
    assert result.max() > 1.05
    expected = resize_by_loop(image.astype(np.float64), (2, 2), "clamp", "once")
    np.testing.assert_allclose(result, expected, atol=1e-6 if dtype == np.float32 else 1e-12)


def test_a_size_takes_the_smaller_factor_first():
    image = picture(60, 64, 3)
    found = imresize(image, None, size=(45, 20))
    width_first = resize_by_loop(image, (45 / 60, 20 / 64), "clamp", "each-pass", order=(1, 0))
    np.testing.assert_array_equal(found, width_first)
    height_first = resize_by_loop(image, (45 / 60, 20 / 64), "clamp", "each-pass", order=(0, 1))
    assert (found != height_first).mean() > 0.1


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    scale=st.floats(0.05, 5),
    value=st.integers(0, 255),
    mode=st.sampled_from(sorted(MODES)),
)
def test_a_constant_stays_and_the_size_is_the_ceiling(height, width, scale, value, mode):
    result = imresize(np.full((height, width, 2), value, np.uint8), scale, mode)
    assert result.shape == (math.ceil(height * scale - 1e-9), math.ceil(width * scale - 1e-9), 2)
    assert (result == value).all()


def test_the_layout_of_the_input_does_not_matter():
    image = picture(30, 50, 3)
    expected = imresize(image, 1 / 3)
    np.testing.assert_array_equal(imresize(np.asfortranarray(image), 1 / 3), expected)
    np.testing.assert_array_equal(imresize(image[::-1, :, ::-1], 1 / 3), imresize(image[::-1, :, ::-1].copy(), 1 / 3))
    np.testing.assert_array_equal(imresize(image[..., :1], 1 / 3)[..., 0], expected[..., 0])
    np.testing.assert_array_equal(imresize(image[..., 0], 1 / 3), expected[..., 0])
    assert expected.flags.c_contiguous


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_bicubic_phases_are_the_weights_of_upscaling(scale):
    weights = bicubic_phases(scale)
    assert weights.shape == (scale, 5)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-15)
    signal = picture(40, 1, dtype=np.float64)
    upscaled = imresize(signal, scale).reshape(40, scale, -1)[:, :, 0]
    for offset in range(2, 38):
        np.testing.assert_allclose(upscaled[offset], weights @ signal[offset - 2 : offset + 3, 0], atol=1e-12)


def test_bicubic_phases_of_two_are_the_known_weights():
    assert bicubic_phases(2)[0].tolist() == [-0.0234375, 0.2265625, 0.8671875, -0.0703125, 0]
    assert bicubic_phases(2)[1].tolist() == [0, -0.0703125, 0.8671875, 0.2265625, -0.0234375]


def test_shrinking_is_several_times_faster_than_the_loop():
    timing = measure((256, 256, 3), 1 / 4, rounds=5)
    print(f"imresize is {timing.ratio:.1f} times as fast as the loop over output rows and columns")
    assert timing.ratio >= 4  # small pictures have little for a product; the slow test holds 5 for each case


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_case_is_five_times_as_fast_as_the_loop(shape, scale):
    timing = measure(shape, SCALES[scale], rounds_of(shape, SCALES[scale], 5))
    print(f"{shape[1]} x {shape[0]} at {scale}: {timing.ratio:.1f} times as fast")
    assert timing.ratio >= 5


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"scale": 2, "mode": "benchmrk"}, ConfigError, "resize mode 'benchmrk' is unknown; expected one of benchmark"),
        ({"scale": 2, "mode": "benchmrk"}, ConfigError, "did you mean 'benchmark'?"),
        ({"scale": 0}, ConfigError, "scale 0 is not possible; expected a positive number such as 2 or 1 / 4"),
        ({"scale": math.nan}, ConfigError, "scale nan is not possible"),
        ({"scale": None}, ConfigError, "found scale None and size None; expected exactly one of them"),
        ({"scale": 2, "size": (2, 2)}, ConfigError, "found scale 2 and size (2, 2); expected exactly one of them"),
        ({"scale": None, "size": (0, 2)}, ConfigError, "size (0, 2) is not possible; expected (height, width)"),
        (
            {"scale": 2, "image": picture(4, 4).astype(np.int32)},
            DataError,
            "cannot resize int32; expected a NumPy array of uint8, uint16, float32 or float64, or a tensor",
        ),
        ({"scale": 2, "image": [[1, 2]]}, DataError, "cannot resize list; expected a NumPy array"),
        ({"scale": 2, "image": picture(4)}, DataError, "cannot resize an array of shape (4,); expected (H, W)"),
        ({"scale": 2, "image": picture(0, 4)}, DataError, "cannot resize an array of shape (0, 4)"),
    ],
)
def test_what_cannot_be_resized_is_refused_in_one_line(arguments, error, text):
    with pytest.raises(error) as caught:
        imresize(**{"image": picture(4, 4), **arguments})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_phases_of_a_scale_below_one_are_refused():
    with pytest.raises(ConfigError, match="bicubic upscaling by 0 is not possible; expected an integer of at least 1"):
        bicubic_phases(0)


def test_resize_color_and_metrics_import_neither_torch_nor_opencv():
    code = (
        "import sys, densekit.resize, densekit.color, densekit.metrics\n"
        "assert not {'torch', 'cv2', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def tensor(*shape: int, dtype=torch.uint8, seed: int = 0):
    random = np.random.default_rng(seed).random(shape)
    limit = 1 if dtype.is_floating_point else torch.iinfo(dtype).max
    return torch.from_numpy(random * limit).to(dtype)


def as_array(pictures):
    """(B, C, H, W) -> B arrays (H, W, C)."""
    return [picture.permute(1, 2, 0).numpy() for picture in pictures]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 1 / 6, 0.37, 1.7, 2, 3, 4])
def test_tensors_of_integers_equal_the_arrays_in_every_bit(mode, scale):
    pictures = tensor(2, 3, 37, 50)
    expected = [imresize(picture, scale, mode) for picture in as_array(pictures)]
    np.testing.assert_array_equal(as_array(imresize(pictures, scale, mode)), expected)
    np.testing.assert_array_equal(as_array(on_other_devices(pictures, scale, mode)), expected)
    deep = tensor(1, 2, 20, 30, dtype=torch.uint16)
    expected = [imresize(picture, scale, mode) for picture in as_array(deep)]
    np.testing.assert_array_equal(as_array(imresize(deep, scale, mode)), expected)
    np.testing.assert_array_equal(as_array(on_other_devices(deep, scale, mode)), expected)


def on_other_devices(image, scale: float, mode: str):
    """The arithmetic of a GPU, on the CPU: what `imresize` does to integers that are not in main memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "in_main_memory", lambda image: False)
        return imresize(image, scale, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 0.37, 1.7, 2, 3])
def test_tensors_of_float64_equal_the_arrays(mode, scale):
    pictures = tensor(2, 3, 37, 50, dtype=torch.float64)
    expected = [imresize(picture, scale, mode) for picture in as_array(pictures)]
    np.testing.assert_allclose(as_array(imresize(pictures, scale, mode)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_floats_are_rounded_once_and_stay_what_they_are(dtype):
    image = tensor(3, 20, 31, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = imresize(image, 1 / 2, "matlab-double")
    assert (result.dtype, result.shape) == (dtype, (3, 10, 16))
    torch.testing.assert_close(result, imresize(image.double(), 1 / 2, "matlab-double").to(dtype), rtol=0, atol=0)


def test_a_tensor_takes_a_size_too_and_any_layout_in_memory():
    image = tensor(1, 3, 60, 64)
    expected = imresize(image[0].permute(1, 2, 0).numpy(), None, size=(45, 20))
    strided = image.to(memory_format=torch.channels_last)
    np.testing.assert_array_equal(as_array(imresize(strided, None, size=(45, 20)))[0], expected)
    assert torch.equal(imresize(image[0], None, size=(45, 20)), imresize(image, None, size=(45, 20))[0])


@pytest.mark.parametrize(
    ("mode", "size"), [("benchmark", (2, 3)), ("matlab-double", (3, 7)), ("matlab-double", (1, 1))]
)
def test_gradients_of_first_and_second_order_are_those_of_finite_differences(mode, size):
    image = tensor(1, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: imresize(x, None, mode, size=size), image)
    assert torch.autograd.gradgradcheck(lambda x: imresize(x, None, mode, size=size).square(), image)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    height=st.integers(1, 70), width=st.integers(1, 40), scale=st.floats(0.05, 5), mode=st.sampled_from(sorted(MODES))
)
def test_gradients_are_the_transposed_map(height, width, scale, mode):
    x = tensor(1, height, width, dtype=torch.float64).requires_grad_()
    result = imresize(x, scale, mode)
    weights = tensor(*result.shape, dtype=torch.float64, seed=1)
    (gradient,) = torch.autograd.grad((result * weights).sum(), x)
    direction = tensor(*x.shape, dtype=torch.float64, seed=2)
    expected = (imresize(direction, scale, mode) * weights).sum()  # the map is linear
    assert float((gradient * direction).sum()) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


@needs_shared_data
def test_a_tensor_too_reproduces_what_matlab_and_the_benchmarks_wrote():
    folder = SHARED / "matlab_imresize"
    image = torch.from_numpy(read(folder / "baboon.png")).permute(2, 0, 1)
    double = imresize(image.double(), 1 / 4, "matlab-double").add(0.5).floor().clamp(0, 255)
    np.testing.assert_array_equal(double.permute(1, 2, 0).numpy(), read(folder / "baboon_down_x4_matlab.png"))
    hr = torch.from_numpy(read(SHARED / "set5" / "HR" / "img_005.png")).permute(2, 0, 1)
    hr = hr[:, : hr.shape[1] // 3 * 3, : hr.shape[2] // 3 * 3]
    for found in (imresize(hr, 1 / 3), on_other_devices(hr, 1 / 3, "benchmark")):
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), read(SHARED / "set5" / "LRx3" / "img_005.png"))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_gives_the_same_bits(mode):
    image = tensor(2, 3, 301, 402)
    for scale in (1 / 2, 1 / 3, 1 / 4, 1 / 6, 0.37, 2, 3, 4):
        found = imresize(image.cuda(), scale, mode)
        assert found.device.type == "cuda"
        assert torch.equal(found.cpu(), imresize(image, scale, mode))
        double = imresize(image.double().cuda(), scale, mode).cpu()
        torch.testing.assert_close(double, imresize(image.double(), scale, mode), rtol=0, atol=1e-10)  # of 0..255


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.int32), "cannot resize a tensor of torch.int32; expected uint8, uint16 or"),
        (torch.zeros(4, 4), "cannot resize a tensor of shape (4, 4); expected (C, H, W) or (B, C, H, W), none of them"),
        (torch.zeros(1, 3, 0, 4), "cannot resize a tensor of shape (1, 3, 0, 4)"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), "cannot resize a tensor of torch.complex64"),
    ],
)
def test_a_tensor_that_is_no_picture_is_refused_in_one_line(image, text):
    with pytest.raises(DataError) as caught:
        imresize(image, 2)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)

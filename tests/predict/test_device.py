from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import densekit
from densekit.cards import Card
from densekit.checkpoint import save_model
from densekit.errors import CheckpointError, ConfigError, DeviceError
from densekit.image import Picture
from densekit.models import create_model
from densekit.predict import Segmenter, Upscaler, load
from densekit.predict.device import choose_device, choose_precision


class Fragile(nn.Module):
    """Doubles an image; gives NaN for bright pixels in the dtypes it is told."""

    scale, multiple_of, receptive_field = 2, 1, 0

    def __init__(self, in_channels: int = 3, *, fails_in: tuple[torch.dtype, ...] = ()) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.fails_in = fails_in

    def forward(self, x):
        y = nn.functional.interpolate(self.gain * x, scale_factor=2, mode="nearest")
        return torch.where(y > 0.9, torch.nan, y) if x.dtype in self.fails_in else y


def fragile(*fails_in: torch.dtype, precision: str = "bf16") -> Upscaler:
    return Upscaler(Fragile(fails_in=fails_in), Card("sr", "rdn", {}), device="cpu", precision=precision)


# Precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_comes_near_full_precision(tiny_sr, upscaler, smooth, precision):
    image = smooth(24, 24)
    half = load(tiny_sr, device="cpu", precision=precision)
    assert half.precision == precision
    differs = np.abs(half.predict(image).astype(int) - upscaler.predict(image))
    assert 0 < differs.max() < (8 if precision == "bf16" else 2)


def test_a_tile_that_is_not_finite_in_half_precision_is_run_again_in_full(smooth):
    image = smooth(40, 40)
    image[0, 0], image[-1, -1] = 255, 255
    picture = fragile(torch.bfloat16).upscale_picture(Picture(image), tile=20)
    exact = fragile(precision="fp32").predict(image)
    assert np.array_equal(picture.pixels[:40, :40], exact[:40, :40])
    assert picture.warnings == ("bf16 gave values that are not finite: those tiles were run again in fp32",)


def test_predict_warns_of_what_a_picture_would_carry():
    with pytest.warns(UserWarning, match="^bf16 gave values that are not finite"):
        fragile(torch.bfloat16).predict(np.full((4, 4, 3), 255, np.uint8))
    with pytest.warns(UserWarning, match="^bf16 gave values that are not finite"):
        fragile(torch.bfloat16).predict(torch.ones(3, 4, 4))


def test_weights_that_are_not_finite_in_full_precision_either_are_refused():
    for precision in ("fp32", "bf16"):
        upscaler = fragile(torch.bfloat16, torch.float32, precision=precision)
        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(
                CheckpointError, match=r"^the weights give values that are not finite; use another checkpoint$"
            ),
        ):
            upscaler.predict(np.full((4, 4, 3), 255, np.uint8))


def test_auto_keeps_deep_pixels_in_full_precision(monkeypatch, rng):
    deep = rng.integers(0, 65_536, (6, 6, 3), np.uint16)
    monkeypatch.setattr("densekit.predict.device.choose_precision", lambda *arguments: "bf16")
    doubled = deep.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(fragile(precision="auto").predict(deep), doubled)
    assert not np.array_equal(fragile(precision="bf16").predict(deep), doubled)


def test_auto_precision_follows_device_and_task(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_precision("auto", cpu, "sr") == choose_precision("auto", torch.device("mps"), "seg") == "fp32"
    assert (choose_precision("auto", cuda, "sr"), choose_precision("auto", cuda, "seg")) == ("fp16", "bf16")
    assert choose_precision("bf16", cpu, "sr") == "bf16"


def test_auto_device_is_cuda_then_mps_then_cpu(monkeypatch):
    has = {"cuda": True, "mps": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(has["cuda"]))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has["mps"])
    assert choose_device() == torch.device("cuda")
    has["cuda"] = False
    assert choose_device("auto") == torch.device("mps")
    has["mps"] = False
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("tpu9", ConfigError, "device 'tpu9': expected auto, cpu, cuda, cuda:N or mps"),
        ("cudaa", ConfigError, "device 'cudaa': expected auto, cpu, cuda, cuda:N or mps; did you mean 'cuda'?"),
        ("cuda:x", ConfigError, "device 'cuda:x': expected auto, cpu, cuda, cuda:N or mps; did you mean 'cuda'?"),
        ("cuda:99", DeviceError, f"device cuda:99: torch {torch.__version__} sees no CUDA device; use --device cpu"),
        ("mps", DeviceError, f"device mps: not on this machine as torch {torch.__version__} sees it; use --device cpu"),
    ],
)
def test_a_wrong_or_missing_device_is_one_line(monkeypatch, name, kind, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(kind) as caught:
        choose_device(name)
    assert str(caught.value) == message


def test_a_wrong_precision_is_one_line(tiny_sr):
    with pytest.raises(ConfigError) as caught:
        load(tiny_sr, precision="fp33")
    assert str(caught.value).startswith("precision 'fp33': expected one of auto, fp32, bf16, fp16; did you mean 'fp")


def test_float_pixels_are_neither_rounded_nor_clamped():
    upscaler = fragile(precision="fp32")
    image = np.array([[[-0.25, 0.1, 0.9876543]]], np.float32)
    assert np.array_equal(upscaler.predict(image), image.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(tiny_sr, tiny_seg, upscaler, smooth):
    image = smooth(300, 200)
    for tile in ("auto", 64):
        gpu = load(tiny_sr, device="cuda")
        assert np.abs(gpu.predict(image, tile=tile).astype(int) - upscaler.predict(image)).max() <= 2
    ids = load(tiny_seg, device="cpu").predict(image)
    assert (load(tiny_seg, device="cuda").predict(image) == ids).mean() > 0.97


# Loading


def test_load_knows_the_task(tiny_sr, tiny_seg):
    upscaler, segmenter = densekit.load(tiny_sr), densekit.load(str(tiny_seg))
    assert isinstance(upscaler, Upscaler)
    assert isinstance(segmenter, Segmenter)
    assert (upscaler.scale, upscaler.card.model) == (2, "rdn")
    assert not upscaler.net.training
    assert not any(parameter.requires_grad for parameter in upscaler.net.parameters())


def test_load_refuses_a_model_that_does_neither(tmp_path):
    arguments = {"depth": 10, "growth_rate": 4}
    net = create_model("densenet_cifar", **arguments)
    save_model(tmp_path / "e.safetensors", net, Card("encoder", "densenet_cifar", arguments))
    with pytest.raises(ConfigError, match=r"e\.safetensors: densenet_cifar is for 'encoder'; expected a model that"):
        load(tmp_path / "e.safetensors")


def test_prediction_loads_no_training_library(tiny_sr):
    code = """
import sys, numpy as np
from densekit.predict import load
load(sys.argv[1]).predict(np.full((40, 40, 3), 9, np.uint8))
heavy = {"albumentations", "segmentation_models_pytorch", "kornia", "timm", "torchvision"}
print(sorted(heavy & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code, str(tiny_sr)], capture_output=True, text=True, check=False)
    assert (run.stdout, run.returncode) == ("[]\n", 0), run.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("conv0.weight", torch.nan), ("down_blocks.0.denselayer1.norm1.weight", torch.inf)]
)
def test_weights_that_are_not_finite_are_refused_even_where_results_would_hide_them(tiny_seg, name, value):
    model = load(tiny_seg)
    with torch.no_grad():
        model.net.get_parameter(name).view(-1)[0] = value
    with pytest.raises(CheckpointError, match=rf"^{name} holds values that are not finite; use another checkpoint$"):
        model.predict(np.zeros((16, 16, 3), np.uint8))

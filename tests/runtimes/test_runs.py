"""Exported networks in the predictor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import densekit
from densekit.errors import CheckpointError, ConfigError
from densekit.export.pictures import draw
from densekit.runtimes import open_exported
from densekit.runtimes.runs import translated

SUFFIXES = pytest.mark.parametrize("suffix", ["onnx", "xml"])


@SUFFIXES
def test_a_network_gives_tensors_of_any_size(exported, suffix):
    net, card = open_exported(exported.folder / f"net.{suffix}")
    assert card == exported.card
    assert (net.scale, net.in_channels, net.multiple_of, net.receptive_field) == (2, 3, 1, exported.net.receptive_field)
    for shape in ((1, 3, 17, 23), (3, 3, 30, 8)):
        x = torch.rand(shape).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            assert torch.allclose(net(x), exported.net(x), atol=1e-5)


@SUFFIXES
def test_predictions_are_those_of_the_checkpoint(exported, suffix):
    image = draw(61, 47)
    wanted = densekit.load(exported.folder / "net.safetensors").predict(image).astype(int)
    upscaler = densekit.load(exported.folder / f"net.{suffix}")
    for tile in ("off", 24):
        assert abs(upscaler.predict(image, tile=tile).astype(int) - wanted).max() <= 1
    assert (str(upscaler.device), upscaler.precision) == ("cpu", "fp32")


def test_16_bits_stay_16(exported):
    image = draw(20, 20).astype(np.uint16) * 257
    results = [densekit.load(exported.folder / name).predict(image) for name in ("net.safetensors", "net.onnx")]
    assert results[1].dtype == np.uint16
    assert abs(results[0].astype(int) - results[1]).max() <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "precision bf16: the file was exported in fp32, so it runs in that; leave out"),
        ({"precision": "fp23"}, "precision 'fp23': expected one of"),
        ({"device": "gpu"}, "device 'gpu': expected auto"),
    ],
)
def test_an_exported_file_runs_where_and_as_it_can(exported, options, message):
    with pytest.raises(ConfigError, match=message):
        densekit.load(exported.folder / "net.onnx", **options)


@pytest.mark.gpu
def test_another_device_is_refused(exported):
    with pytest.raises(ConfigError, match="device cuda: an exported file runs on the CPU; use --device cpu, or its"):
        densekit.load(exported.folder / "net.onnx", device="cuda")


def test_its_weights_cannot_be_saved(exported):
    net, _ = open_exported(exported.folder / "net.onnx")
    with pytest.raises(ConfigError, match="an exported file has no weights of its own to save; use the checkpoint"):
        net.state_dict()


@SUFFIXES
def test_a_wrong_input_is_one_line(exported, suffix):
    net, _ = open_exported(exported.folder / f"net.{suffix}")
    with pytest.raises(CheckpointError, match=rf"net\.{suffix}: (ONNX Runtime|OpenVINO) could not run it: ") as caught:
        net(torch.rand(1, 4, 16, 16))
    assert "\n" not in str(caught.value)


def test_memory_that_does_not_suffice_is_known_as_such():
    with pytest.raises(MemoryError), translated("ONNX Runtime", "a.onnx"):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 9")
    with pytest.raises(MemoryError), translated("ONNX Runtime", "a.onnx"):
        raise MemoryError
    with (
        pytest.raises(CheckpointError, match=r"a\.onnx: OpenVINO could not run it: odd"),
        translated("OpenVINO", "a.onnx"),
    ):
        raise RuntimeError("odd")

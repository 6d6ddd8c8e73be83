from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from densekit.errors import ConfigError, DataError
from densekit.export import Comparison, Unequal, comparing, export_model, quantize, verify
from densekit.export.pictures import cut, draw, fit, samples
from densekit.export.tracing import describe, trace
from densekit.export.writing import to_onnx
from densekit.image import Picture, write_image
from densekit.pretrained import open_model, trained_names
from densekit.runtimes import read_exported
from tests.export.networks import make, make_encoder

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
FINE = Comparison("ONNX Runtime", 2, 1e-6, 130.0, None, 1, 1.5, 1)


@pytest.fixture(scope="module")
def rdn():
    return make("rdn")


def graph_of(key, **options):
    net, card = make(key)
    return describe(net, card, **{"pad": True, "argmax": False, "uint8": False, "opset": 18, **options})


def write_pictures(folder: Path, count: int = 3, side: int = 60) -> Path:
    folder.mkdir()
    for number in range(count):
        write_image(folder / f"{number}.png", Picture(np.roll(draw(side, side + 9), 7 * number, 0)))
    return folder


def test_a_verified_file_says_what_it_is_and_how_it_compares(rdn, tmp_path):
    net, card = rdn
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pictures = write_pictures(tmp_path / "pictures", count=1)
    done = export_model(net, card, tmp_path / "net.onnx", verify=[pictures])
    assert done.paths == (tmp_path / "net.onnx",)
    exported = read_exported(done.paths[0])
    assert exported.card == card
    assert exported.graph == done.graph
    assert (done.graph.scale, done.graph.in_channels, done.graph.receptive_field) == (2, 3, net.receptive_field)
    assert [one.runtime for one in done.comparisons] == ["ONNX Runtime", "OpenVINO"]
    for one in done.comparisons:
        assert one.images == 13
        assert one.max_difference < 1e-5
        assert one.psnr > 100
        assert one.levels <= 1
        assert one.agreement is None
        assert 0.01 < one.speed < 100
    again = verify(done.paths[0], net, card)
    assert [one.images for one in again] == [12, 12]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_graph_that_differs_is_not_written_and_the_old_file_stays(rdn, tmp_path, monkeypatch):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"old")
    monkeypatch.setattr(comparing, "MAX_DIFFERENCE", -1.0)
    with pytest.raises(Unequal, match=r"net\.pt2: torch\.export gives a difference of .*, more than -1"):
        export_model(*rdn, path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["net.pt2"]


def test_a_pt2_archive_holds_the_card_and_torch_runs_it(rdn, tmp_path):
    net, card = rdn
    done = export_model(net, card, tmp_path / "net.pt2")
    assert (done.comparisons, done.loss) == ((), None)
    with zipfile.ZipFile(done.paths[0]) as archive:
        assert any(name.endswith("densekit.json") for name in archive.namelist())
    assert read_exported(done.paths[0]).card == card
    x = torch.rand(2, 3, 19, 31)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(done.paths[0]).module()(x), net(x), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, []),
        ({"max_difference": 2e-4}, ["a difference of 0.0002, more than 0.0001"]),
        ({"max_difference": float("nan")}, ["a difference of nan, more than 0.0001"]),
        ({"levels": 2}, ["a difference of 2 levels in 8 bits, more than 1"]),
        ({"agreement": 0.9998}, ["the same class for 99.98% of the pixels, less than 99.99%"]),
    ],
)
def test_what_is_beyond_a_limit_is_named(changes, fault):
    assert dataclasses.replace(FINE, **changes).faults() == fault


def test_a_comparison_reads_as_a_line():
    assert str(FINE) == (
        "ONNX Runtime: 2 images, max difference 1.0e-06, PSNR 130.0 dB, at most 1 of 255 levels, "
        "1.50 times the speed of PyTorch (1 threads)"
    )


def test_a_wrong_pixel_is_found(rdn):
    net, card = rdn
    graph = graph_of("rdn")

    def run(x):
        with torch.no_grad():
            y = net(torch.from_numpy(x)).numpy()
        y[0, 0, -1, -1] += 0.5
        return [y]

    (found,) = comparing.compare({"broken": run}, net, graph, card.task)
    assert found.max_difference == pytest.approx(0.5, abs=1e-3)
    assert len(found.faults()) == 2


def test_values_that_are_not_finite_are_beyond_the_limit(rdn):
    net, card = rdn

    def run(x):
        return [np.full((len(x), 3, 2 * x.shape[2], 2 * x.shape[3]), np.nan, np.float32)]

    (found,) = comparing.compare({"broken": run}, net, graph_of("rdn"), card.task)
    assert found.psnr == float("-inf")
    assert len(found.faults()) == 2


@pytest.mark.parametrize(
    ("key", "name", "options", "message"),
    [
        ("rdn", "net.tflite", {}, r"net\.tflite: expected \.onnx, \.xml \(OpenVINO\) or \.pt2 \(torch\.export\)"),
        ("rdn", "net.onnx", {"argmax": True}, "argmax: a model of task sr gives no logits of pixels; leave it out"),
        ("rdn", "net.onnx", {"opset": 17}, "opset=17: expected 18 to 23"),
        ("rdn", "net.pt2", {"calibrate": ["pictures"]}, r"int8 is for \.onnx and \.xml; a \.pt2 file is fp32"),
        ("densenet", "net.onnx", {"uint8": True}, "uint8: an encoder takes what its network takes; leave it out"),
    ],
)
def test_options_that_do_not_fit_are_refused(key, name, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export_model(*make(key), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_traced_is_one_line(tmp_path):
    class Odd(type(make("rdn")[0])):
        def forward(self, x):
            return super().forward(x) * (2 if x.mean() > 0.5 else 1)

    _, card = make("rdn")
    with pytest.raises(
        ConfigError, match=r"rdn: torch\.export cannot trace it: Could not guard on data-dependent"
    ) as caught:
        export_model(Odd(**card.arguments), card, tmp_path / "net.pt2")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_axes_have_names(rdn):
    net, card = rdn
    graph = describe(net, card, pad=True, argmax=False, uint8=True, opset=18)
    model = to_onnx(*trace(net, graph, upscales=True))
    axes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    ]
    assert axes == [["batch", "height", "width", 3], ["batch", "2*height", "2*width", 3]]


def test_without_onnxscript_the_way_to_install_it_is_told(rdn, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs the package onnxscript; run: pip install 'densekit\[export\]'"):
        export_model(*rdn, tmp_path / "net.onnx")


def test_samples_are_of_sizes_that_the_graph_takes(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", count=1, side=600)
    sizes = [images.shape for images in samples(graph_of("rrdbnet x2 unshuffle", pad=False), [pictures])]
    assert sizes[0] == (1, 16, 22, 3)
    assert sizes[-1] == (1, 512, 512, 3)
    assert all(height % 2 == 0 and width % 2 == 0 for _, height, width, _ in sizes)
    coarse = dataclasses.replace(graph_of("rdn"), multiple_of=32, min_size=32, any_size=False)
    assert {images.shape[1:3] for images in samples(coarse)} == {(32, 32), (64, 32), (96, 160), (288, 512)}
    net, card = make("srdensenet")
    assert next(samples(describe(net, card, pad=True, argmax=False, uint8=False, opset=18))).shape == (1, 17, 23, 1)


def test_an_image_is_repeated_where_it_is_too_small_and_cut_in_the_middle():
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 40, 3), np.uint8)
    fitted = fit(image, graph_of("fc_densenet", pad=False))
    assert fitted.shape == (1, 8, 40, 3)
    assert np.array_equal(fitted[0, 5:8], image[0, :3])
    assert np.array_equal(cut(image[0], 10), image[0, :, 15:25])


def test_an_encoder_takes_sizes_from_one_deepest_pixel_on():
    net, card = make_encoder("densenet")
    graph = describe(net, card, pad=True, argmax=False, uint8=False, opset=18)
    assert (graph.any_size, graph.min_size, graph.multiple_of, graph.num_outputs) == (False, 32, 1, 3)


class TestInt8:
    def test_every_second_picture_judges(self, tmp_path):
        pictures = write_pictures(tmp_path / "pictures", count=5)
        graph = graph_of("rdn")
        used = {flag: list(quantize.pictures_for(graph, "sr", [pictures], calibrating=flag)) for flag in (True, False)}
        assert [len(found) for found in used.values()] == [3, 2]
        original, images = used[False][0]
        assert original.shape == (60, 68, 3)
        assert images.shape == (1, 30, 34, 3)

    def test_a_single_picture_serves_both_purposes(self, tmp_path):
        pictures = write_pictures(tmp_path / "pictures", count=1)
        for flag in (True, False):
            assert len(list(quantize.pictures_for(graph_of("rdn"), "sr", [pictures], calibrating=flag))) == 1

    def test_a_picture_too_small_to_be_reduced_is_named(self, tmp_path):
        pictures = write_pictures(tmp_path / "pictures", count=1)
        write_image(pictures / "0.png", Picture(draw(1, 9)))
        with pytest.raises(DataError, match=r"0\.png: 9x1, too small for int8; remove it"):
            list(quantize.pictures_for(graph_of("rdn"), "sr", [pictures], calibrating=True))

    @pytest.mark.slow
    @pytest.mark.parametrize("key", ["rdn", "fc_densenet"])
    def test_an_int8_file_says_what_it_loses(self, key, tmp_path):
        net, card = make(key)
        pictures = write_pictures(tmp_path / "pictures", count=4, side=90)
        done = export_model(net, card, tmp_path / "net.onnx", calibrate=[pictures], verify=[])
        assert read_exported(done.paths[0]).graph.precision == done.graph.precision == "int8"
        assert done.loss.pictures == 2
        text = str(done.loss)
        if card.task == "sr":
            assert done.loss.psnr > 30
            assert abs(done.loss.lost_psnr) < 1
            assert text.startswith("int8: loses ")
        else:
            assert done.loss.agreement > 0.9
            assert 0 < done.loss.miou <= 1
            assert text.startswith("int8: same class as fp32 for ")

    def test_a_network_with_too_few_layers_is_refused(self):
        nodes = [SimpleNamespace(name=str(number), op_type="Conv") for number in range(4)]
        model = SimpleNamespace(graph=SimpleNamespace(node=[*nodes, SimpleNamespace(name="a", op_type="Add")]))
        with pytest.raises(
            ConfigError, match="int8: the network has 4 layers, of which the first and last 2 stay float"
        ):
            quantize.quantize(model, graph_of("rdn"), "sr", [])


@pytest.mark.slow
@pytest.mark.parametrize("name", trained_names())
def test_an_embedded_model_is_the_same_in_every_runtime(name, tmp_path):
    net, card = open_model(name)
    done = export_model(net, card, tmp_path / "net.onnx", verify=[SAMPLES])
    assert [one.runtime for one in done.comparisons] == ["ONNX Runtime", "OpenVINO"]
    assert not [fault for one in done.comparisons for fault in one.faults()]

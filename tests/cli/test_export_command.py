from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.export import comparing
from densekit.export.pictures import draw
from densekit.runtimes import read_exported

for _package in ("onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(_package)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image, int)


def test_predict_takes_an_exported_file_and_gives_what_the_checkpoint_gives(run, start, tiny_sr):
    result = run("sr", "export", "-m", tiny_sr, "-o", "net.onnx")
    assert (result.code, result.out) == (0, ["net.onnx"])
    assert (
        result.err[-1] == "compared with PyTorch on small images alone; --verify adds larger ones, pictures and speed"
    )
    Path("in").mkdir()
    Image.fromarray(draw(33, 50)).save("in/a.png")
    assert run("sr", "predict", "in", "-m", tiny_sr, "-o", "eager").code == 0
    process = start("sr", "predict", "in", "-m", "net.onnx", "-o", "onnx")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.decode().split() == ["onnx/a_x2.png"]
    assert abs(pixels("eager/a_x2.png") - pixels("onnx/a_x2.png")).max() <= 1


@pytest.mark.slow
def test_classes_of_an_exported_file_are_those_of_the_checkpoint(run, tiny_seg):
    result = run("seg", "export", "-m", tiny_seg, "-o", "net.xml", "--verify", "--json")
    record = json.loads(result.out[0])
    assert (result.code, record["files"], record["task"]) == (0, ["net.xml", "net.bin"], "seg")
    assert record["verify"][0]["agreement"] >= 0.9999
    assert record["graph"]["out_channels"] == 3
    assert record["int8"] is None
    Image.fromarray(draw(33, 50)).save("a.png")
    for model, folder in ((tiny_seg, "eager"), ("net.xml", "openvino")):
        assert run("seg", "predict", "a.png", "-m", model, "-o", folder).code == 0
    assert (pixels("eager/a_mask.png") == pixels("openvino/a_mask.png")).mean() >= 0.9999


@pytest.mark.slow
def test_options_reach_the_file(run, tiny_seg):
    assert run("seg", "export", "-m", tiny_seg, "-o", "net.onnx", "--argmax", "--uint8", "--no-pad").code == 0
    graph = read_exported("net.onnx").graph
    assert (graph.argmax, graph.uint8, graph.any_size) == (True, True, False)
    Image.fromarray(draw(33, 50)).save("a.png")
    result = run("seg", "predict", "a.png", "-m", "net.onnx")
    assert (result.code, result.out) == (5, [])
    assert "net.onnx: exported with --uint8, so it gives bytes, of which tiles cannot be blended" in result.err[-1]


@pytest.mark.slow
def test_int8_says_what_it_loses(run, tiny_sr):
    Path("pictures").mkdir()
    for number in range(2):
        Image.fromarray(draw(64, 70 + number)).save(f"pictures/{number}.png")
    result = run("sr", "export", "-m", tiny_sr, "-o", "net.onnx", "--int8", "--calibrate", "pictures")
    assert result.code == 0
    assert any(line.startswith("int8: loses ") for line in result.err)


@pytest.mark.parametrize(
    ("task", "words", "code", "message"),
    [
        ("sr", ["-m", "SR"], 2, "Missing option '-o'"),
        ("sr", ["-m", "SR", "-o", "net.tflite"], 2, "-o net.tflite: expected a .onnx, .xml or .pt2 file in a folder"),
        ("sr", ["-m", "SR", "-o", "gone/net.onnx"], 2, "-o gone/net.onnx: expected a .onnx, .xml or .pt2 file"),
        ("sr", ["-m", "SR", "-o", "there.onnx"], 2, "-o there.onnx already exists; add --overwrite or choose another"),
        ("sr", ["-m", "SR", "-o", "there.xml"], 2, "-o there.bin already exists; add --overwrite or choose another"),
        ("sr", ["-m", "SEG", "-o", "net.onnx"], 2, "a model of task seg, not sr"),
        ("sr", ["-m", "SR", "-o", "net.onnx", "--int8"], 2, "--int8 needs --calibrate DIR, pictures like those it"),
        ("sr", ["-m", "SR", "-o", "net.onnx", "--calibrate", "x"], 2, "--calibrate needs --int8, which alone uses"),
        ("sr", ["-m", "SR", "-o", "net.onnx", "--opset", "9"], 2, "9 is not in the range 18<=x<=23"),
        ("sr", ["-m", "gone.safetensors", "-o", "net.onnx"], 5, "gone.safetensors: no such file"),
        ("seg", ["-m", "SEG", "-o", "net.pt2", "--int8", "--calibrate", "x"], 2, "int8 is for .onnx and .xml"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(run, tiny_sr, tiny_seg, task, words, code, message):
    Path("there.onnx").write_bytes(b"old")
    Path("there.bin").write_bytes(b"old")
    names = {"SR": tiny_sr, "SEG": tiny_seg}
    result = run(task, "export", *(names.get(word, word) for word in words))
    assert (result.code, result.out) == (code, [])
    assert message in result.err[-1]
    assert sorted(path.name for path in Path().iterdir()) == ["there.bin", "there.onnx"]
    assert Path("there.onnx").read_bytes() == b"old"


def test_what_a_runtime_does_otherwise_ends_with_1_and_writes_nothing(run, tiny_sr, monkeypatch):
    monkeypatch.setattr(comparing, "MAX_DIFFERENCE", -1.0)
    result = run("sr", "export", "-m", tiny_sr, "-o", "net.pt2")
    assert (result.code, result.out) == (1, [])
    assert result.err[-1].startswith("error: net.pt2: torch.export gives a difference of ")
    assert not list(Path().iterdir())

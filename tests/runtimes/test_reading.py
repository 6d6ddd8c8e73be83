"""What can be wrong with an exported file, each in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
import zipfile

import pytest

from densekit.cards import DIGEST, FORMAT, Card
from densekit.errors import CheckpointError, ConfigError
from densekit.runtimes import Graph, open_exported, read_exported, seal
from densekit.runtimes.runs import first_line

GRAPH = Graph(2, 3, 1, 3, 1, 1, 9, 100.0, True, False, False, "fp32", 18)
CARD = Card("sr", "rdn", {"scale": 2})


def text_of(**changes):
    description = {"sha256": "0" * DIGEST, "format": FORMAT, **dataclasses.asdict(CARD), "graph": vars(GRAPH)}
    return json.dumps({**description, **changes}, separators=(",", ":"))


def field(number, content):
    size = bytearray()
    left = len(content)
    while left > 127:
        size.append(left & 127 | 128)
        left >>= 7
    return bytes([number << 3 | 2, *size, left]) + content


def onnx_with(*texts):
    """Returns an ONNX file without a graph, with such metadata."""
    return b"\x08\x0a" + b"".join(field(14, field(1, b"densekit") + field(2, text.encode())) for text in texts)


def message_of(path):
    with pytest.raises(CheckpointError) as caught:
        read_exported(path)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(str(path)).removeprefix(": ")


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.pt2"])
def test_a_whole_file_is_read(exported, name):
    found = read_exported(exported.folder / name)
    assert found.card == exported.card
    assert found.graph.scale == 2
    assert (found.sha256 == "") == (name == "net.pt2")


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.bin"])
@pytest.mark.parametrize("place", [0.3, 0.9])
def test_a_flipped_bit_anywhere_is_found(exported, tmp_path, name, place):
    for suffix in ("onnx", "xml", "bin"):
        shutil.copy(exported.folder / f"net.{suffix}", tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged|not one that|no seal|without a densekit"):
        read_exported(tmp_path / ("net.onnx" if name == "net.onnx" else "net.xml"))


def test_an_xml_with_the_weights_of_another_is_refused(exported, tmp_path):
    shutil.copy(exported.folder / "net.xml", tmp_path)
    (tmp_path / "net.bin").write_bytes((exported.folder / "net.bin").read_bytes() + b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"net\.bin: does not belong to net\.xml, or is damaged; copy both anew"):
        read_exported(tmp_path / "net.xml")


def test_an_xml_alone_is_refused(exported, tmp_path):
    shutil.copy(exported.folder / "net.xml", tmp_path)
    assert message_of(tmp_path / "net.xml") == "net.bin is not beside it; an .xml needs its .bin"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.onnx", b"", "ONNX without a densekit description, so it cannot say what it does; expected a file that"),
        ("a.onnx", b"\x08\x0a", "ONNX without a densekit description"),
        ("a.onnx", b"\xff\xff\xff", "not an ONNX file, or a damaged one; export it again"),
        ("a.onnx", b"\x3a\x7fabc", "not an ONNX file, or a damaged one; export it again"),
        ("a.onnx", b"version https://git-lfs.github.com/spec/v1", "not an ONNX file, or a damaged one"),
        ("a.onnx", onnx_with("{"), "its description is damaged; export it again"),
        ("a.onnx", onnx_with("[1]"), "its description is damaged; export it again"),
        ("a.onnx", onnx_with(text_of(), text_of()), "its description is damaged; export it again"),
        ("a.onnx", onnx_with(json.dumps({"format": 1})), "its description has no seal of its own; export it again"),
        ("a.onnx", onnx_with(text_of()), "SHA-256 of its bytes is"),
        ("a.xml", b"<html></html>", "not an OpenVINO model, or a damaged one; export it again"),
        ("a.xml", b'<?xml version="1.0"?><net></net>', "OpenVINO without a densekit description"),
        ("a.pt2", b"PK", "not a .pt2 archive, or a damaged one; export it again"),
        ("a.tflite", b"x", "not an exported file; expected one of .onnx, .xml, .pt2"),
        ("a.onnx", seal(onnx_with(text_of(format=9))), "format 9, but this densekit reads 1; update densekit"),
        ("a.onnx", seal(onnx_with(text_of(graph=None))), "its description has no usable scale, so it is not one"),
        ("a.onnx", seal(onnx_with(text_of(graph={**vars(GRAPH), "scale": True}))), "its description has no usable sc"),
        ("a.onnx", seal(onnx_with(text_of(graph={**vars(GRAPH), "scale": -1}))), "its description has no usable sc"),
        ("a.onnx", seal(onnx_with(text_of(graph={**vars(GRAPH), "scale": 0}))), "its description names an impossible"),
        ("a.onnx", seal(onnx_with(text_of(graph={**vars(GRAPH), "uint8": 0}))), "its description has no usable uint8"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_ours_is_one_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    assert message_of(tmp_path / name).startswith(message)


def test_a_missing_file_is_named(tmp_path):
    assert message_of(tmp_path / "gone.onnx") == "cannot be read: No such file or directory"
    assert message_of(tmp_path / "gone.pt2") == "cannot be read: No such file or directory"


def test_an_archive_without_our_description_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("archive/extra/other.json", "{}")
    assert message_of(tmp_path / "a.pt2").startswith("torch.export without a densekit description")


def test_a_seal_covers_every_byte_but_its_own():
    data = onnx_with(text_of())
    sealed = seal(data)
    assert len(sealed) == len(data)
    assert hashlib.sha256(data).hexdigest().encode() in sealed


def test_a_graph_that_no_runtime_can_read_is_one_line(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.onnx").write_bytes(seal(onnx_with(text_of())))
    with pytest.raises(CheckpointError, match=r"a\.onnx: ONNX Runtime cannot read it: "):
        open_exported(tmp_path / "a.onnx")


def test_torchs_archive_is_not_opened_since_its_loader_may_run_code(exported):
    with pytest.raises(CheckpointError, match=r"net\.pt2: torch\.export's own loader may run code that a file holds"):
        open_exported(exported.folder / "net.pt2")


@pytest.mark.parametrize(("flag", "word"), [("uint8", "bytes"), ("argmax", "class numbers")])
def test_a_graph_of_bytes_or_classes_is_not_for_prediction(tmp_path, flag, word):
    (tmp_path / "a.onnx").write_bytes(seal(onnx_with(text_of(graph={**vars(GRAPH), flag: True}))))
    with pytest.raises(CheckpointError, match=rf"exported with --{flag}, so it gives {word}, of which tiles cannot"):
        open_exported(tmp_path / "a.onnx")


@pytest.mark.parametrize(("suffix", "package"), [("onnx", "onnxruntime"), ("xml", "openvino")])
def test_a_runtime_that_is_not_there_is_told_how_to_install(exported, monkeypatch, suffix, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}; run: pip install 'densekit\[export\]'"):
        open_exported(exported.folder / f"net.{suffix}")


def test_of_what_a_runtime_says_the_first_telling_line_is_kept():
    error = RuntimeError("Exception from src/core.cpp:1:\n\nCheck 'x' failed at y:\nmore\n")
    assert first_line(error) == "Check 'x' failed at y:"
    assert first_line(RuntimeError("")) == "RuntimeError"
    assert len(first_line(RuntimeError("x" * 999))) == 200

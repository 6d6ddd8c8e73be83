"""The bytes of exported files: what they say of themselves, and whether they are those that were written.

Every file holds one JSON text: the card's fields, `graph`, and `sha256`, the digest of the file with the digest's own
place zeroed. ONNX has it in its metadata, OpenVINO's .xml in its run-time information, with the digest of the .bin
beside it. A .pt2 archive has it as an extra file, unsealed: it is never loaded here.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekit.cards import DIGEST, MAX_HEADER, Card, card_from, read_bytes, verify_seal
from densekit.errors import CheckpointError
from densekit.files import printable
from densekit.runtimes.graph import Graph, graph_from

KINDS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}
NAMES = {"onnx": "ONNX", "openvino": "OpenVINO", "pt2": "torch.export"}
SEALS = (b'{"sha256":"', b"{&quot;sha256&quot;:&quot;")  # where a digest follows: in ONNX, and as XML writes it
EXTRA = "densekit.json"  # of a .pt2 archive
METADATA, KEY, VALUE = 14, 1, 2  # fields of ONNX's ModelProto and StringStringEntryProto
_ENTRY = re.compile(rb'<densekit value="([^"]*)"\s*/>')


@dataclass(frozen=True)
class Exported:
    """An exported file that is whole.

    Attributes:
        path: the file.
        kind: "onnx", "openvino" or "pt2".
        card: that of the checkpoint it was made from.
        graph: what goes in and comes out.
        data: its bytes; none of a .pt2.
        weights: those of the .bin beside an .xml.
        sha256: its seal; "" of a .pt2, which has none.
    """

    path: Path
    kind: str
    card: Card
    graph: Graph
    data: bytes = b""
    weights: bytes = b""
    sha256: str = ""


def read_exported(path: str | Path) -> Exported:
    """Returns what an exported file holds, once its bytes are known to be those written.

    Raises:
        CheckpointError: missing, damaged, or not written by densekit; or the .bin of an .xml is missing or another's.
    """
    path, source = Path(path), printable(path)
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise CheckpointError(f"{source}: not an exported file; expected one of {', '.join(KINDS)}")
    data = b"" if kind == "pt2" else read_bytes(path)
    texts = {"onnx": _in_onnx, "openvino": _in_xml, "pt2": _in_archive}[kind](path, data, source)
    if not texts:
        raise CheckpointError(
            f"{source}: {NAMES[kind]} without a densekit description, so it cannot say what it does; expected a file "
            "that densekit export wrote"
        )
    try:
        (text,) = texts
        description = json.loads(text)
        if not isinstance(description, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{source}: its description is damaged; export it again") from error
    sha256 = "" if kind == "pt2" else _check_seal(data, source)
    card, graph = card_from(description, source), graph_from(description.get("graph"), source)
    weights = _read_weights(path, description) if kind == "openvino" else b""
    return Exported(path, kind, card, graph, data, weights, sha256)


def seal(data: bytes) -> bytes:
    """Returns an ONNX or XML file whose description, which begins with 64 zeros as `sha256`, has its own SHA-256."""
    mark = next(mark for mark in SEALS if mark + b"0" * DIGEST in data)
    assert data.count(mark) == 1, "a description with a second sha256"
    start = data.index(mark) + len(mark)
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + DIGEST :]


def _check_seal(data: bytes, source: str) -> str:
    marks = [mark for mark in SEALS if mark in data]
    if len(marks) != 1 or data.count(marks[0]) != 1:
        raise CheckpointError(f"{source}: its description has no seal of its own; export it again")
    return verify_seal(data, data.index(marks[0]) + len(marks[0]), source)


def _read_weights(path: Path, description: dict[str, Any]) -> bytes:
    """Returns the bytes of the .bin beside an .xml.

    Raises:
        CheckpointError: missing, or not those that belong to it.
    """
    beside = path.with_suffix(".bin")
    if not beside.is_file():
        raise CheckpointError(f"{printable(path)}: {printable(beside.name)} is not beside it; an .xml needs its .bin")
    weights = read_bytes(beside)
    if hashlib.sha256(weights).hexdigest() != description.get("weights_sha256"):
        raise CheckpointError(
            f"{printable(beside)}: does not belong to {printable(path.name)}, or is damaged; copy both anew, together"
        )
    return weights


def _in_onnx(path: Path, data: bytes, source: str) -> list[str]:
    """Returns the texts under our key in the metadata of an ONNX file."""
    try:
        entries = [dict(_fields(value)) for number, value in _fields(data) if number == METADATA]
        return [entry[VALUE].decode() for entry in entries if entry.get(KEY) == b"densekit"]
    except (ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{source}: not an ONNX file, or a damaged one; export it again") from error


def _in_xml(path: Path, data: bytes, source: str) -> list[str]:
    """Returns the texts under our name in the run-time information of an .xml."""
    if b"<net" not in data[:1000] or b"</net>" not in data[-1000:]:
        raise CheckpointError(f"{source}: not an OpenVINO model, or a damaged one; export it again")
    return [html.unescape(found.decode("utf-8", "replace")) for found in _ENTRY.findall(data)]


def _in_archive(path: Path, data: bytes, source: str) -> list[str]:
    """Returns the text of our extra file in a .pt2 archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [item for item in archive.infolist() if item.filename.split("/")[1:] == ["extra", EXTRA]]
            return [archive.read(item).decode() for item in found if item.file_size <= MAX_HEADER]
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{source}: not a .pt2 archive, or a damaged one; export it again") from error


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields number and content of the fields of a protobuf message that hold bytes.

    Raises:
        ValueError, IndexError: it is none.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 2:
            size, position = _varint(data, position)
            if position + size > len(data):
                raise ValueError("cut off")
            yield tag >> 3, data[position : position + size]
            position += size
        elif wire == 0:
            _, position = _varint(data, position)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number that does not end")

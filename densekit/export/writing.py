"""A traced graph as the bytes of a file."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import ExportedProgram

from densekit.cards import DIGEST, FORMAT, Card
from densekit.export.tracing import quiet
from densekit.runtimes import Graph, seal
from densekit.runtimes.reading import EXTRA
from densekit.runtimes.runs import missing

OPSETS = range(18, 24)  # of ONNX: the first that torch's exporter writes, and what this was tried with


@dataclass(frozen=True)
class Bytes:
    """A file, and the one beside it: the weights of an OpenVINO model."""

    data: bytes
    weights: bytes = b""


def text_of(card: Card, graph: Graph, **more: str) -> str:
    """Returns what a file says of itself; the digest, first, is for `seal` to fill in."""
    description = {"sha256": "0" * DIGEST, "format": FORMAT, **dataclasses.asdict(card), "graph": vars(graph), **more}
    return json.dumps(description, separators=(",", ":"), allow_nan=False)


def to_onnx(program: ExportedProgram, graph: Graph) -> Any:
    """Returns the ONNX model of a traced graph, with named axes and without the traces of this machine.

    Raises:
        ConfigError: the exporter is not installed.
    """
    try:
        import onnxscript  # noqa: F401 - what torch's exporter is made with
    except ImportError as error:
        raise missing("onnxscript", "export to ONNX") from error
    with quiet():
        made = torch.onnx.export(program, dynamo=True, opset_version=graph.opset, verbose=False, input_names=["image"])
    assert made is not None
    model = made.model_proto
    for node in model.graph.node:  # names of modules and lines of code, half of a small file
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.value_info[:]
    _name_axes(model, graph)
    return model


def onnx_bytes(model: Any, card: Card, graph: Graph) -> Bytes:
    """Returns a sealed ONNX file."""
    del model.metadata_props[:]
    model.metadata_props.add(key="densekit", value=text_of(card, graph))
    return Bytes(seal(model.SerializeToString(deterministic=True)))


def openvino_bytes(model: Any, card: Card, graph: Graph) -> Bytes:
    """Returns a sealed .xml and its .bin, made from an ONNX model.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", "export to OpenVINO") from error
    with TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "model.onnx"), Path(folder, "model.xml")
        del model.metadata_props[:]  # it would be carried over
        source.write_bytes(model.SerializeToString())
        converted = openvino.convert_model(source)
        del converted.rt_info["conversion_parameters"]
        openvino.save_model(converted, target, compress_to_fp16=False)
        weights = target.with_suffix(".bin").read_bytes()
        digest = hashlib.sha256(weights).hexdigest()
        converted.set_rt_info(text_of(card, graph, weights_sha256=digest), ["densekit"])
        openvino.save_model(converted, target, compress_to_fp16=False)
        assert target.with_suffix(".bin").read_bytes() == weights
        return Bytes(seal(target.read_bytes()), weights)


def pt2_bytes(program: ExportedProgram, card: Card, graph: Graph) -> Bytes:
    """Returns a .pt2 archive."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={EXTRA: text_of(card, graph)})
    return Bytes(buffer.getvalue())


def _name_axes(model: Any, graph: Graph) -> None:
    """Names the free axes of an ONNX model: batch, height and width, and multiples of these where there are such."""
    (given,) = model.graph.input
    names: Mapping[int, str] = {1: "height", 2: "width"} if graph.uint8 else {2: "height", 3: "width"}
    _name(given, {0: "batch", **names})
    outputs = list(model.graph.output)
    for number, output in enumerate(outputs):
        sides = output.type.tensor_type.shape.dim
        times = "" if graph.scale == 1 else f"{graph.scale}*"
        level = f"_{number}" if len(outputs) > 1 else ""
        first = 2 if len(sides) == 4 and sides[1].HasField("dim_value") else 1  # (B, C, H, W), else no C or it is last
        axes = {first: f"{times}height{level}", first + 1: f"{times}width{level}"} if len(sides) > 2 else {}
        _name(output, {0: "batch", **axes})


def _name(value: Any, axes: Mapping[int, str]) -> None:
    for axis, name in axes.items():
        dim = value.type.tensor_type.shape.dim[axis]
        if dim.HasField("dim_param") or not dim.HasField("dim_value"):
            dim.dim_param = name

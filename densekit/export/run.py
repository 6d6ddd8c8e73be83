"""From a network to a file that says what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from densekit.cards import Card
from densekit.errors import ConfigError
from densekit.export.comparing import Comparison, check, compare, judge, runs_of
from densekit.export.quantize import Loss, measure_loss, quantize
from densekit.export.tracing import describe, on_cpu, trace
from densekit.export.writing import OPSETS, Bytes, onnx_bytes, openvino_bytes, pt2_bytes, to_onnx
from densekit.files import printable, replacing
from densekit.runtimes import Graph
from densekit.runtimes.reading import KINDS
from densekit.runtimes.runs import first_line


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        paths: the file, and the .bin beside an .xml.
        graph: what goes in and comes out.
        comparisons: one of each runtime, if they were asked for.
        loss: what 8-bit integers cost; None in fp32.
    """

    paths: tuple[Path, ...]
    graph: Graph
    comparisons: tuple[Comparison, ...] = ()
    loss: Loss | None = None


def export_model(
    net: nn.Module,
    card: Card,
    path: str | Path,
    *,
    pad: bool = True,
    argmax: bool = False,
    uint8: bool = False,
    calibrate: Sequence[str | Path] = (),
    verify: Sequence[str | Path] | None = None,
    opset: int = 18,
) -> Export:
    """Writes a network as a graph for images of any size and number: ONNX, OpenVINO or torch.export.

    The graph takes and gives what the network does, its own mean and std inside it; the options add to that. Files are
    replaced at once, an .xml and its .bin together, and only after every runtime gave what PyTorch gives on a few small
    images: the exporters' own assertions are not in all formats.

    Args:
        net: with its weights; it is not changed.
        card: what its checkpoint says about it; it goes into the file.
        path: ends in .onnx, .xml or .pt2.
        pad: the graph also takes sizes that the network does not, by continuing the image by its last row and column
            and cropping the result; not for encoders. Otherwise it takes what the network takes.
        argmax: gives class numbers, uint8 (B, H, W), in place of logits; segmentation only.
        uint8: takes bytes (B, H, W, C) in 0..255, and gives images in this way too; not for encoders.
        calibrate: folders of pictures: the graph computes in 8-bit integers, whose ranges are measured on every second
            of them; what that costs is measured on the others.
        verify: compare on random and drawn images of up to 512x300, and on the pictures in these folders, and measure
            the speed as well.
        opset: of ONNX, one of `OPSETS`.

    Raises:
        ConfigError: an option that does not fit the network or the file, or a package that is not installed.
        Unequal: the graph does not do what the network does; nothing was written.
        DataError: pictures that cannot be read.
        OSError: the file cannot be written.
    """
    path = Path(path)
    kind = KINDS.get(path.suffix.lower(), "")
    _check(card, path, kind, argmax=argmax, uint8=uint8, calibrate=calibrate, opset=opset)
    net = on_cpu(net)
    graph = describe(net, card, pad=pad, argmax=argmax, uint8=uint8, opset=opset)
    if argmax and graph.out_channels > 256:
        raise ConfigError(f"argmax: {graph.out_channels} classes do not fit a byte; leave it out")
    try:
        program, graph = trace(net, graph, upscales=card.task == "sr")
    except Exception as error:  # torch has a dozen kinds, and networks of others any
        raise ConfigError(f"{printable(card.model)}: torch.export cannot trace it: {first_line(error)}") from error
    source, loss = printable(path), None
    if kind == "pt2":
        written = pt2_bytes(program, card, graph)
    else:
        model: Any = to_onnx(program, graph)
        if calibrate:
            graph = dataclasses.replace(graph, precision="int8")
            model = quantize(model, graph, card.task, calibrate)
        written = (onnx_bytes if kind == "onnx" else openvino_bytes)(model, card, graph)
    comparisons: list[Comparison] = []
    runs = runs_of(kind, written.data, written.weights, source)
    if graph.precision == "fp32":
        check(runs, net, graph, card.task, source)
    if verify is not None:
        comparisons = compare(runs, net, graph, card.task, verify)
        if graph.precision == "fp32":
            judge(comparisons, source)
    if calibrate:
        loss = measure_loss(next(iter(runs.values())), net, graph, card.task, calibrate)
    return Export(_write(path, written), graph, tuple(comparisons), loss)


def _check(
    card: Card, path: Path, kind: str, *, argmax: bool, uint8: bool, calibrate: Sequence[str | Path], opset: int
) -> None:
    if not kind:
        raise ConfigError(f"{printable(path)}: expected .onnx, .xml (OpenVINO) or .pt2 (torch.export)")
    if argmax and card.task != "seg":
        raise ConfigError(f"argmax: a model of task {printable(card.task)} gives no logits of pixels; leave it out")
    if uint8 and card.task == "encoder":
        raise ConfigError("uint8: an encoder takes what its network takes; leave it out")
    if calibrate and kind == "pt2":
        raise ConfigError("int8 is for .onnx and .xml; a .pt2 file is fp32")
    if opset not in OPSETS:
        raise ConfigError(f"opset={opset}: expected {OPSETS[0]} to {OPSETS[-1]}")


def _write(path: Path, written: Bytes) -> tuple[Path, ...]:
    """Replaces a file, and the weights beside it in the same moment or not at all; returns their paths."""
    if not written.weights:
        with replacing(path) as file:
            file.write(written.data)
        return (path,)
    beside = path.with_suffix(".bin")
    with replacing(beside) as weights, replacing(path) as file:
        weights.write(written.weights)
        file.write(written.data)
    return path, beside

"""Graphs that compute in 8-bit integers, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from densekit.datasets.pictures import list_pictures, read_rgb
from densekit.errors import ConfigError, DataError
from densekit.export.comparing import class_numbers, decibels, given, reference
from densekit.export.pictures import Images, cut, fit, with_channels
from densekit.export.tracing import quiet
from densekit.files import printable
from densekit.metrics import ConfusionMatrix, psnr
from densekit.resize import imresize
from densekit.runtimes import Graph
from densekit.runtimes.runs import Array, Run, missing

SIDE = 256  # of what is cut from the middle of each picture
MOST = 32  # pictures for each of the two purposes
# Layers at each end that stay float; with 1, OpenVINO rounds the image itself: RDN-tiny x2 loses 1.6 dB, not 0.05.
KEPT = 2
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what is computed in integers


@dataclass(frozen=True)
class Loss:
    """What 8-bit integers cost on pictures that their ranges were not measured on.

    Attributes:
        pictures: how many.
        psnr: between the results of fp32 and int8, in dB; None for segmentation.
        lost_psnr: how much closer fp32 comes to the pictures, which are reduced for this by the scale and enlarged
            again, in dB by the protocol rdn-y; None for segmentation and scale 1.
        agreement: share of the pixels whose class is the same, 0..1; None for super-resolution.
        miou: of int8's classes, those of fp32 taken as true, 0..1; None for super-resolution.
    """

    pictures: int
    psnr: float | None = None
    lost_psnr: float | None = None
    agreement: float | None = None
    miou: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.lost_psnr is not None:
            parts.append(f"loses {self.lost_psnr:.3f} dB (rdn-y) against fp32")
        if self.psnr is not None:
            parts.append(f"PSNR to it {self.psnr:.1f} dB")
        if self.agreement is not None and self.miou is not None:
            parts += [f"same class as fp32 for {self.agreement:.2%} of the pixels", f"mIoU to it {self.miou:.4f}"]
        return f"int8: {', '.join(parts)} ({self.pictures} pictures)"


def quantize(model: Any, graph: Graph, task: str, folders: Sequence[str | Path]) -> Any:
    """Returns an ONNX model whose convolutions compute in 8-bit integers, ranges measured on half of the pictures.

    The first and the last stay float: they touch the image itself, and cost little.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        DataError: no pictures, or some that cannot be read.
    """
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError as error:
        raise missing("onnxruntime", "int8") from error
    inputs = (given(graph, images) for _, images in pictures_for(graph, task, folders, calibrating=True))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            return next(({"image": x} for x in inputs), None)

    layers = [node.name for node in model.graph.node if node.op_type in LAYERS]
    if len(layers) <= 2 * KEPT:
        raise ConfigError(f"int8: the network has {len(layers)} layers, of which the first and last {KEPT} stay float")
    with TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model.SerializeToString())
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,  # 7 bits: sums of 8 overflow on x86 without VNNI; 0.06 dB of RDN-tiny x2 in OpenVINO
            nodes_to_exclude=[*layers[:KEPT], *layers[-KEPT:]],
        )
        return onnx.load(target)


def measure_loss(run: Run, net: nn.Module, graph: Graph, task: str, folders: Sequence[str | Path]) -> Loss:
    """Returns what an int8 graph loses against the network in fp32 on the half of the pictures it has not seen."""
    matrix = ConfusionMatrix(num_classes=max(2, graph.out_channels))
    errors: list[float] = []
    lost: list[float] = []
    number = 0
    for original, images in pictures_for(graph, task, folders, calibrating=False):
        number += 1
        (found,), (wanted,) = run(given(graph, images)), reference(net, graph, task, images)
        if task == "seg":
            ids, truth = (class_numbers(y, graph).astype(np.int64) for y in (found, wanted))
            matrix.update(ids, truth)
            continue
        low, high = (_image(y, graph) for y in (found, wanted))
        errors.append(float(((low.astype(np.float64) - high) ** 2).mean()))
        if original is not None:
            lost.append(psnr(high, original, scale=graph.scale) - psnr(low, original, scale=graph.scale))
    if task == "seg":
        return Loss(number, agreement=matrix.accuracy(), miou=matrix.miou())
    error = sum(errors) / number
    return Loss(
        number,
        psnr=decibels(255, error),
        lost_psnr=sum(lost) / len(lost) if lost else None,
    )


def pictures_for(
    graph: Graph, task: str, folders: Sequence[str | Path], *, calibrating: bool
) -> Iterator[tuple[Images | None, Images]]:
    """Yields an original (H, W, C) or None, and images (1, h, w, C) to put into the graph: every second picture.

    A graph that upscales gets the picture reduced by its scale, as pictures that are to be enlarged look. A single
    picture serves both purposes.
    """
    paths = list_pictures([str(folder) for folder in folders])
    for path in (paths[::2] if calibrating else paths[1::2] or paths)[:MOST]:
        pixels = read_rgb(path)
        if task != "sr" or graph.scale == 1:
            yield None, fit(cut(pixels, SIDE)[None], graph)
            continue
        unit = graph.scale * graph.multiple_of
        height, width = (side // unit * unit for side in cut(pixels, SIDE * graph.scale).shape[:2])
        if not height or not width:
            raise DataError(f"{printable(path)}: {pixels.shape[1]}x{pixels.shape[0]}, too small for int8; remove it")
        whole = with_channels(cut(pixels, SIDE * graph.scale)[:height, :width], graph.in_channels)
        yield whole, fit(imresize(whole, 1 / graph.scale)[None], graph)


def _image(y: Array, graph: Graph) -> Images:
    """Returns what a graph gave for one picture as (H, W, C) uint8."""
    return y[0] if graph.uint8 else np.floor(y[0].transpose(1, 2, 0).clip(0, 1) * 255 + 0.5).astype(np.uint8)

"""A network and what comes before and after it as one graph, for images of any size and number."""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from densekit.cards import Card
from densekit.export.pooling import with_part_means
from densekit.memory import activation_bytes_per_pixel
from densekit.predict.inputs import argument_of
from densekit.runtimes import Graph

SAMPLE = 2, 48, 64  # images, height and width that a network is traced with; none may become a constant


class Root(nn.Module):
    """What an exported graph holds.

    Args:
        net: the network.
        graph: what is to come before and after it.
        upscales: whether it gives images.

    Shapes: as `graph` says.
    """

    def __init__(self, net: nn.Module, graph: Graph, *, upscales: bool) -> None:
        super().__init__()
        self.graph: Graph
        self.net: nn.Module
        self.upscales: bool
        self.net, self.graph, self.upscales = net, graph, upscales
        self.pads: bool = graph.any_size and max(graph.multiple_of, graph.min_size) > 1

    def forward(self, image: Tensor) -> Any:
        # Contiguous, for of a view the tracer asks at every layer whether a side is 1.
        x = image.permute(0, 3, 1, 2).contiguous().float() / 255 if self.graph.uint8 else image
        height, width = x.shape[-2:]
        if self.pads:
            x = continued(x, self._needed(height), self._needed(width))
        y = self.net(x)
        if self.pads:
            y = y.narrow(-2, 0, height * self.graph.scale).narrow(-1, 0, width * self.graph.scale)
        if self.graph.argmax:
            return classes_of(y)
        return to_bytes(y) if self.graph.uint8 and self.upscales else y

    def _needed(self, side: int) -> int:
        unit = self.graph.multiple_of
        needed: Any = torch.sym_max((side + unit - 1) // unit * unit, self.graph.min_size)
        return needed


def continued(x: Tensor, height: int, width: int) -> Tensor:
    """Returns (B, C, H, W) continued at the bottom and right by its last row and column.

    By indices: a padding whose width may be 0 makes the exporter ask whether it is.
    """
    rows = torch.arange(height).clamp(max=x.shape[-2] - 1)
    columns = torch.arange(width).clamp(max=x.shape[-1] - 1)
    return x.index_select(-2, rows).index_select(-1, columns)


def classes_of(logits: Tensor) -> Tensor:
    """Returns the class of every pixel, uint8 (B, H, W); of one logit, 1 where it is above 0."""
    return (logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)).to(torch.uint8)


def to_bytes(y: Tensor) -> Tensor:
    """Returns images (B, C, H, W) as uint8 (B, H, W, C), clamped and rounded half up."""
    return (y.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)


def describe(net: nn.Module, card: Card, *, pad: bool, argmax: bool, uint8: bool, opset: int) -> Graph:
    """Returns what the graph of a network will take and give."""
    channels = int(argument_of(net, card, "in_channels"))
    multiple_of: int = net.multiple_of  # type: ignore[assignment]
    min_size = int(getattr(net, "min_size", 1))
    if card.task == "encoder":  # sizes are floored on the way down, so that any is taken from one deepest pixel on
        multiple_of, min_size = 1, max(multiple_of, min_size)
    side = -(-max(32, min_size) // multiple_of) * multiple_of
    with torch.no_grad():
        result = net(torch.full((1, channels, side, side), 0.5))
    results = list(result) if isinstance(result, list | tuple) else [result]
    field: int | None = net.receptive_field  # type: ignore[assignment]
    return Graph(
        scale=int(net.scale),  # type: ignore[arg-type]
        in_channels=channels,
        num_outputs=len(results),
        out_channels=results[0].shape[1],
        multiple_of=multiple_of,
        min_size=min_size,
        receptive_field=None if field is None else int(field),
        bytes_per_pixel=activation_bytes_per_pixel(net, channels),
        any_size=card.task != "encoder" and (pad or max(multiple_of, min_size) == 1),
        argmax=argmax,
        uint8=uint8,
        precision="fp32",
        opset=opset,
    )


def on_cpu(net: nn.Module) -> nn.Module:
    """Returns a copy of a network on the CPU, in float32 and evaluation mode, that learns nothing."""
    return copy.deepcopy(net).cpu().float().eval().requires_grad_(False)


def trace(net: nn.Module, graph: Graph, *, upscales: bool) -> tuple[ExportedProgram, Graph]:
    """Returns a network as a graph whose height, width and number of images are free, and what it is.

    Some decoders cannot be traced for a single pixel of their deepest features: there the smallest size is doubled, to
    which smaller images are continued.
    """
    net = with_part_means(net)
    try:
        return _trace(Root(net, graph, upscales=upscales)), graph
    except RuntimeError as error:
        if "Constraints violated" not in str(error) or max(graph.multiple_of, graph.min_size) == 1:
            raise
    graph = dataclasses.replace(graph, min_size=2 * max(graph.multiple_of, graph.min_size))
    return _trace(Root(net, graph, upscales=upscales)), graph


def _trace(root: Root) -> ExportedProgram:
    graph = root.graph
    height, width = (_fitting(graph, side) for side in SAMPLE[1:])
    shape = (SAMPLE[0], graph.in_channels, height, width)
    axes = {0: Dim("batch", min=1), 2: _axis(graph, "height"), 3: _axis(graph, "width")}
    example = torch.full(shape, 0.5)
    if graph.uint8:
        example = torch.full((shape[0], height, width, graph.in_channels), 128, dtype=torch.uint8)
        axes = {0: axes[0], 1: axes[2], 2: axes[3]}
    # Without these two, sizes for which a shape happens to be 1, or an offset 0, are left out of the graph's range, or
    # the number of images becomes a constant.
    general = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), general, quiet():
        program = torch.export.export(
            root, (example,), dynamic_shapes=(axes,), strict=False, prefer_deferred_runtime_asserts_over_guards=True
        )
    _drop_inequalities(program)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _drop_inequalities(program: ExportedProgram) -> None:
    """Takes out assertions that a size is, or is not, 1, which the tracer makes to know strides.

    They would refuse small images, where the deepest features are one pixel. ONNX has none of them anyway, so
    every file is compared with its network on such images before it is written.
    """
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            told = node.args[0]
            if isinstance(told, torch.fx.Node) and (told.target is torch.sym_not or 1 in told.args):
                program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what torch and its exporters say about themselves; what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", category=category, module=r"(torch|onnx\w*|copyreg|openvino)(\.|$)")
            yield
    finally:
        logging.disable(before)


def _fitting(graph: Graph, side: int) -> int:
    """Returns a side that the network takes, not so small that one inside it becomes 1, which would be a constant."""
    least = side * max(graph.multiple_of, graph.min_size) // 16
    return -(-max(side, least) // graph.multiple_of) * graph.multiple_of


def _axis(graph: Graph, name: str) -> Any:
    if graph.any_size:
        return Dim(name, min=1)
    if graph.multiple_of == 1:
        return Dim(name, min=graph.min_size)
    return graph.multiple_of * Dim(f"{name}_units", min=-(-graph.min_size // graph.multiple_of))

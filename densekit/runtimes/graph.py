"""What an exported file says about its graph."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from densekit.errors import CheckpointError


@dataclass(frozen=True)
class Graph:
    """What goes into an exported graph, what comes out, and what its network needs.

    Attributes:
        scale: output pixels per input pixel, on each side.
        in_channels: of the images.
        num_outputs: results: 1, or the number of an encoder's feature maps.
        out_channels: of the first result, before any argmax.
        multiple_of: what the network needs height and width to be divisible by.
        min_size: smallest height and width that the network takes.
        receptive_field: radius in input pixels; None where it has no bound.
        bytes_per_pixel: peak of the tensors alive in a forward pass of the PyTorch network, per input pixel.
        any_size: whether the graph takes images of any size: where the network does not, it continues them by their
            last row and column, and crops the result.
        argmax: whether it gives class numbers (B, H, W) in place of logits (B, C, H, W).
        uint8: whether it takes bytes (B, H, W, C) in 0..255 in place of float (B, C, H, W) in 0..1, and where it gives
            images gives them in this way as well.
        precision: "fp32" or "int8".
        opset: of ONNX.
    """

    scale: int
    in_channels: int
    num_outputs: int
    out_channels: int
    multiple_of: int
    min_size: int
    receptive_field: int | None
    bytes_per_pixel: float
    any_size: bool
    argmax: bool
    uint8: bool
    precision: str
    opset: int


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "int | None": (int, type(None)), "float": (int, float), "bool": (bool,), "str": (str,),
}  # fmt: skip


def graph_from(description: Any, source: str) -> Graph:
    """Returns the graph in a file's description.

    Raises:
        CheckpointError: a description that is not one; `source` names the file.
    """
    given = description if isinstance(description, dict) else {}
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Graph):
        value = given.get(field.name)
        fits = isinstance(value, _KINDS[str(field.type)]) and isinstance(value, bool) == (field.type == "bool")
        is_number = isinstance(value, int | float)
        if not fits or (is_number and not 0 <= value < 2**31):  # type: ignore[operator]
            raise CheckpointError(
                f"{source}: its description has no usable {field.name}, so it is not one that densekit wrote; refused"
            )
        values[field.name] = value
    if 0 in (values["scale"], values["in_channels"], values["multiple_of"], values["bytes_per_pixel"]):
        raise CheckpointError(f"{source}: its description names an impossible network; refused")
    return Graph(**values)

"""Networks that left PyTorch: files of `densekit.export`, run by ONNX Runtime and OpenVINO on the CPU.

Reading what such a file says of itself imports neither torch nor a runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from densekit.cards import Card
from densekit.errors import CheckpointError
from densekit.files import printable
from densekit.runtimes.graph import Graph
from densekit.runtimes.reading import Exported, read_exported, seal

if TYPE_CHECKING:
    from densekit.runtimes.net import ExportedNet

__all__ = ["Exported", "Graph", "open_exported", "read_exported", "seal"]


def open_exported(path: str | Path) -> tuple[ExportedNet, Card]:
    """Returns the network in an exported file, (B, C, H, W) float32 in and out, and its card.

    It runs on the CPU with as many threads as torch has, and takes and gives tensors there.

    Raises:
        CheckpointError: missing, damaged, not written by densekit, or a kind of file that cannot be run safely or gives
            no plain result.
        ConfigError: the runtime is not installed.
    """
    exported = read_exported(path)
    source, graph = printable(path), exported.graph
    if exported.kind == "pt2":
        raise CheckpointError(
            f"{source}: torch.export's own loader may run code that a file holds, so densekit does not open it; export "
            "to .onnx or .xml, or call torch.export.load on a file that you trust"
        )
    if graph.uint8 or graph.argmax:
        option, gives = ("--uint8", "bytes") if graph.uint8 else ("--argmax", "class numbers")
        raise CheckpointError(
            f"{source}: exported with {option}, so it gives {gives}, of which tiles cannot be blended; export without"
        )
    from densekit.runtimes.net import ExportedNet
    from densekit.runtimes.runs import prepare

    return ExportedNet(prepare(exported), graph), exported.card

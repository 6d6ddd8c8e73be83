"""An exported graph as a network that the predictor takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from densekit.errors import ConfigError
from densekit.runtimes.graph import Graph
from densekit.runtimes.runs import Run


class ExportedNet(nn.Module):
    """A graph that another runtime runs, on the CPU and in the precision it was exported in.

    Args:
        run: the graph as a function of an array.
        graph: what it says of itself, which is also found here as `scale`, `multiple_of`, `min_size`, `in_channels`,
            `num_classes`, `receptive_field` and `bytes_per_pixel`.

    Shapes: (B, C, H, W) -> (B, C', scale H, scale W), or a list of feature maps, float32 on the CPU.
    """

    def __init__(self, run: Run, graph: Graph) -> None:
        super().__init__()
        self.graph: Graph
        self._run, self.graph = run, graph
        self.in_channels: int
        self.num_classes: int
        self.scale: int
        self.scale, self.in_channels, self.num_classes = graph.scale, graph.in_channels, graph.out_channels
        self.min_size: int
        self.multiple_of: int
        self.multiple_of, self.min_size = graph.multiple_of, graph.min_size
        self.bytes_per_pixel: float
        self.receptive_field: int | None
        self.receptive_field, self.bytes_per_pixel = graph.receptive_field, graph.bytes_per_pixel

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        results = self._run(x.detach().to("cpu", torch.float32).contiguous().numpy())
        tensors = [torch.from_numpy(result) for result in results]
        return tensors if self.graph.num_outputs > 1 else tensors[0]

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Refuses: the weights are the runtime's.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("an exported file has no weights of its own to save; use the checkpoint it was made from")

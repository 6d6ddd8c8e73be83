"""Networks that densekit has not, but spandrel has: they predict, tile by tile where their field allows it."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any, Self

from torch import Tensor

from densekit.blocks.inference.planned import Planned
from densekit.cards import Card
from densekit.dialects.dialect import Tensors
from densekit.dialects.reach import measured_field
from densekit.dialects.report import LoadReport
from densekit.errors import CheckpointError, ConfigError
from densekit.files import printable

NAME = "spandrel"
INSTALL = "pip install 'densekit[foreign]'"
PREFIXES = ("", "generator_ema.", "generator.", "model.", "net.")  # of names in what programs save, averages first
SMALLEST = 16  # pixels; a network for larger images alone, such as faces of 512, is not asked for its field
THICKNESS = 8  # pixels of the strips that it is asked with, if it takes such


class SpandrelNet(Planned):
    """A network of spandrel as the predictor takes it.

    Args:
        descriptor: spandrel's `ImageModelDescriptor`. It fills images that are too small, and clamps to 0..1.

    Attributes:
        scale, in_channels, multiple_of: as of networks here.
        receptive_field: radius in input pixels as `measured_field` finds it, or None: tiles are never exact.
        precisions: those that it runs in.

    Shapes: (B, in_channels, H, W) in 0..1 -> (B, C, scale H, scale W) in 0..1.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.body: Any = descriptor.model.eval().requires_grad_(False)  # as a child, so that it moves along
        self.in_channels: int
        self.scale: int
        self.scale, self.in_channels = int(descriptor.scale), int(descriptor.input_channels)
        self.out_channels: int = int(descriptor.output_channels)
        self.name: str = str(descriptor.architecture.name)
        needs = descriptor.size_requirements
        self.multiple_of: int = int(needs.multiple_of)
        halves = {"bf16": descriptor.supports_bfloat16, "fp16": descriptor.supports_half}
        self.precisions: tuple[str, ...] = ("fp32", *(name for name, can in halves.items() if can))
        is_tiled = descriptor.tiling.name == "SUPPORTED" and not needs.square and needs.minimum <= SMALLEST
        self.receptive_field: int | None = self._measured(max(THICKNESS, needs.minimum)) if is_tiled else None

    def _measured(self, thickness: int) -> int | None:
        try:
            return measured_field(
                self,
                in_channels=self.in_channels,
                scale=self.scale,
                multiple_of=self.multiple_of,
                thickness=thickness,
            )
        except (RuntimeError, ValueError, AssertionError, IndexError):  # a network that takes no strips
            return None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._descriptor(x.contiguous())  # many of its networks use `view`, which is for that layout
        return y

    def train(self, mode: bool = True) -> Self:
        """Sets it to evaluation.

        Raises:
            ConfigError: for training.
        """
        if mode:
            raise ConfigError(f"{self.name} is a network of spandrel's, which predicts here and is not trained")
        return super().train(mode)

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Refuses: no checkpoint could say what network the weights are for.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"{self.name} is a network of spandrel's, not densekit's, so it cannot be saved as a checkpoint; keep the "
            "file that it came from"
        )


def is_installed() -> bool:
    """Says whether spandrel is there, without importing it."""
    return find_spec("spandrel") is not None


def open_with_spandrel(
    tensors: Tensors, source: str, notes: tuple[str, ...] = ()
) -> tuple[SpandrelNet, Card, LoadReport] | None:
    """Returns the network that spandrel makes of weights, a card and a report, or None if it knows none.

    Args:
        tensors: by the names in the file.
        source: the file, for messages.
        notes: of the report.

    Raises:
        CheckpointError: not all of a network, or one that fills in holes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the ways of its networks and of what it imports
        import spandrel

        descriptor = _described(spandrel, tensors, source)
        if descriptor is None:
            return None
        if not isinstance(descriptor, spandrel.ImageModelDescriptor):
            raise CheckpointError(
                f"{source}: {descriptor.architecture.name} fills in masked parts of pictures; expected a network that "
                "enlarges or restores them"
            )
        net = SpandrelNet(descriptor)
    arguments = {"scale": net.scale, "in_channels": net.in_channels, "out_channels": net.out_channels}
    card = Card("sr", f"{NAME}:{net.name}", arguments)
    if net.receptive_field is None:
        told = "sees further than any tile, or not everywhere alike: where memory asks for tiles, they are not exact"
    else:
        told = f"sees {net.receptive_field} pixels to each side, as measured: tiles are exact"
    return net, card, LoadReport(source, NAME, card.model, arguments, notes=(*notes, told))


def _described(spandrel: Any, tensors: Tensors, source: str) -> Any:
    """Returns spandrel's descriptor of weights, or None if it knows no such network.

    Raises:
        CheckpointError: it takes them for a network's that they are not all of.
    """
    for prefix in PREFIXES:
        bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        try:
            return spandrel.ModelLoader().load_from_state_dict(bare)
        except spandrel.UnsupportedModelError:
            continue
        except Exception as error:  # its networks are not written for damaged files
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"{source}: spandrel takes the weights for one of its networks', but cannot load them: "
                f"{printable(' '.join(line.strip() for line in lines[:2]))}"
            ) from error
    return None

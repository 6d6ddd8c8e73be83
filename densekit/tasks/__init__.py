"""What differs between the tasks. The training loop knows nothing else of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from densekit.cards import Card
    from densekit.config import Config
    from densekit.tasks.adversary import Adversary


class Sample(NamedTuple):
    """A validation picture and what a network makes of it.

    Attributes:
        path: of the picture.
        given: what the network sees, (H, W, 3) uint8 RGB.
        result: sr: (scale H, scale W, 3) uint8 RGB; seg: class numbers (H, W).
        truth: what the result should be; seg: void is 255.
    """

    path: Path
    given: NDArray[np.uint8]
    result: NDArray[np.uint8]
    truth: NDArray[np.uint8]


class Task(Protocol):
    """A task, as the training loop sees it."""

    metric: str  # the figure of `evaluate` by which the best weights are chosen; larger is better
    protocol: str  # that `evaluate` scores by
    fingerprint: str  # of the data: a run is continued only with the same
    adversary: Adversary | None  # who judges what the network makes, and trains against it

    def build_model(self) -> nn.Module:
        """Returns the network, with random weights or those the config names."""

    def describe_data(self) -> str:
        """Returns one line that says how much there is to train and to evaluate on."""

    def train_batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (input, target) batches without end, from the forward pass `start` on."""

    def sources(self, draws: Iterable[int]) -> list[Path]:
        """Returns the file that each draw is from."""

    def loss(self, net: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the scalar to minimise."""

    def evaluate(self, net: nn.Module) -> dict[str, float]:
        """Returns the figures on the validation data; empty without such data."""

    def samples(self, net: nn.Module, start: int = 0) -> Iterator[Sample]:
        """Yields the validation pictures from number `start` on; each runs the network when it is asked for."""

    def card(self, step: int, metrics: dict[str, Any]) -> Card:
        """Returns the card of a checkpoint saved at `step` with these figures."""


def create_task(config: Config) -> Task:
    """Returns the task that a config names, its data loaded.

    Raises:
        DataError, ImageError: the data cannot be used.
        ConfigError: the model's arguments do not fit, or the data, loss or protocol do not go with it.
    """
    if config.task == "sr":
        from densekit.tasks.sr import SuperResolution

        return SuperResolution(config)
    from densekit.tasks.seg import Segmentation

    return Segmentation(config)

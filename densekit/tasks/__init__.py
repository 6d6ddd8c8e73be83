"""What differs between the tasks: four methods each. The training loop knows nothing else of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from densekit.cards import Card
    from densekit.config import Config


class Task(Protocol):
    """A task, as the training loop sees it."""

    metric: str  # the figure of `evaluate` by which the best weights are chosen; larger is better
    fingerprint: str  # of the data: a run is continued only with the same

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

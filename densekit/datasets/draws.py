"""Randomness as a pure function of (seed, draw): nothing to save, nothing that depends on workers.

The n-th sample ever drawn, n = step * batch_size + position, is a function of the seed and n alone: which picture it
is, where it is cropped, how it is flipped. A run resumed at any step, with any number of workers, sees what it would
have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

_ORDER = 1 << 60  # keeps the streams of orders apart from those of draws


def draw_rng(seed: int, draw: int) -> np.random.Generator:
    """Returns the generator that belongs to one draw."""
    return np.random.Generator(np.random.Philox(key=[seed, draw]))


class Draws(Sampler[tuple[int, int]]):
    """Yields (draw, index) without end, each epoch a permutation of the indices of its own.

    Args:
        num_samples: of the data set.
        seed: of the run.
        start: first draw, step * batch_size.
        batch_size: of all processes together.
        part: (rank, ranks), which slice of each batch is drawn.
    """

    def __init__(
        self, num_samples: int, seed: int, start: int = 0, *, batch_size: int = 1, part: tuple[int, int] = (0, 1)
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.start = start
        self.batch_size = batch_size
        self.part = part

    def index_of(self, draw: int) -> int:
        """Returns the index that belongs to a draw."""
        epoch, position = divmod(draw, self.num_samples)
        return int(self._order(epoch)[position])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draw = self.start
        while True:
            epoch, first = divmod(draw, self.num_samples)
            for index in self._order(epoch)[first:]:
                rank, ranks = self.part
                if draw % self.batch_size * ranks // self.batch_size == rank:
                    yield draw, int(index)
                draw += 1

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return draw_rng(self.seed, _ORDER | epoch).permutation(self.num_samples)

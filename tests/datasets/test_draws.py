from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from densekit.datasets.draws import Draws, draw_rng
from densekit.datasets.masks import MaskedImages, pair_masks
from densekit.datasets.transforms import Augment
from tests.training_data import make_masked, write_masked


def first(count, *args, **kwargs):
    return list(islice(Draws(*args, **kwargs), count))


def test_each_epoch_is_a_permutation_of_its_own():
    found = first(40, 10, seed=3)
    assert [draw for draw, _ in found] == list(range(40))
    epochs = [tuple(index for _, index in found[i : i + 10]) for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 4


@pytest.mark.parametrize("start", [1, 9, 10, 25])
def test_a_start_in_the_middle_goes_on_as_the_whole_would(start):
    assert first(20, 10, seed=3, start=start) == first(start + 20, 10, seed=3)[start:]


def test_a_data_set_of_one_is_drawn_again_and_again():
    assert first(3, 1, seed=0) == [(0, 0), (1, 0), (2, 0)]


def test_orders_are_those_that_runs_in_progress_have_seen():
    """Known answers: another order would break the resume of runs begun before."""
    assert [index for _, index in first(12, 6, seed=1)] == [5, 1, 0, 3, 2, 4, 0, 3, 1, 4, 5, 2]
    assert draw_rng(1, 0).integers(1000, size=4).tolist() == [458, 303, 729, 848]


def test_draws_and_seeds_have_streams_of_their_own():
    streams = {tuple(draw_rng(seed, draw).integers(2**63, size=2)) for seed in range(20) for draw in range(50)}
    assert len(streams) == 1000
    assert draw_rng(2**32 - 1, 2**59).random() != draw_rng(2**32 - 1, 2**59 + 1).random()


class Fingerprints(MaskedImages):
    """Masked images whose items are a hash of what would be drawn."""

    def __getitem__(self, item):
        image, ids = super().__getitem__(item)
        return hash((image.numpy().tobytes(), ids.numpy().tobytes()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_thousand_draws_differ_and_are_the_same_with_any_number_of_workers(tmp_path):
    """F17: albumentations alone gives every worker, and every epoch, the same stream."""
    pairs = pair_masks([str(write_masked(tmp_path / "data", count=4, height=112, width=128))], [])
    data = Fingerprints(pairs, 3, 255, Augment("strong", 32, seed=7))

    def draw(workers, count=1000):
        loader = DataLoader(data, 20, sampler=Draws(len(data), seed=7), num_workers=workers)
        return torch.cat(list(islice(loader, count // 20))).tolist()

    stream = draw(2)
    assert len(set(stream)) == 1000
    assert draw(0) == stream
    assert draw(1, 200) == stream[:200]


class PlainlyAugmented(torch.utils.data.Dataset):
    """What a loader of albumentations looks like without our adapter."""

    def __init__(self):
        import albumentations as A

        self.compose = A.Compose([A.RandomCrop(16, 16), A.GaussNoise(p=1.0)], seed=7)
        self.image = make_masked(48, 48, 0)[0]

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return hash(self.compose(image=self.image)["image"].tobytes())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_without_the_adapter_workers_and_epochs_repeat_themselves():
    """The positive control of the test above."""
    loader = DataLoader(PlainlyAugmented(), 8, num_workers=2)
    drawn = torch.cat([batch for _ in range(2) for batch in loader]).tolist()
    assert len(drawn) == 128
    assert len(set(drawn)) == 32


def test_nothing_touches_the_random_state_of_the_process(tmp_path):
    pairs = pair_masks([str(write_masked(tmp_path / "data"))], [])
    data = MaskedImages(pairs, 3, 255, Augment("microscopy", 32, seed=7))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    for draw in range(20):
        data[draw, draw % 3]
    assert (before[0] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())

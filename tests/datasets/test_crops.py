"""Crops with focus: exactly the distribution that is promised, and nothing else changed."""

from __future__ import annotations

import pickle
from collections import Counter
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from densekit.datasets.crops import find_corner
from densekit.datasets.draws import Draws, draw_rng
from densekit.datasets.masks import MaskedImages, pair_masks
from densekit.datasets.transforms import AUGMENTATIONS, Augment
from densekit.errors import ConfigError
from densekit.losses import IGNORE
from tests.training_data import make_masked, write_masked

CROP = 24
WANTED = {"foreground": None, "balanced": [0, 1, 2, 77, 254]}  # of which 77 is in no mask

masks = st.tuples(st.integers(3, 9), st.integers(3, 9), st.integers(0, 2**32 - 1), st.integers(0, 30)).map(
    lambda drawn: draw_mask(*drawn)
)


def draw_mask(height, width, seed, wanted):
    """Mostly background and void, with up to `wanted` pixels of classes 1, 2 and 254."""
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, IGNORE], (height, width)).astype(np.uint8)
    mask.ravel()[rng.integers(0, mask.size, wanted)] = rng.choice([1, 2, 254], wanted)
    return mask


def chances(mask, size, focus):
    """The probability of each corner, from a list of all pixels and of all crops around each."""
    height, width = mask.shape
    classes = [c for c in range(IGNORE) if (mask == c).any()]
    groups = [mask == c for c in classes] if focus == "balanced" else [(mask != 0) & (mask != IGNORE)]
    found = Counter()
    for group in groups:
        pixels = np.argwhere(group)
        for y, x in pixels:
            corners = [
                (top, left)
                for top in range(height - size + 1)
                for left in range(width - size + 1)
                if top <= y < top + size and left <= x < left + size
            ]
            for corner in corners:
                found[corner] += Fraction(1, len(groups) * len(pixels) * len(corners))
    return found


@settings(max_examples=200, deadline=None)
@given(masks, st.integers(1, 3), st.sampled_from(["foreground", "balanced"]), st.integers(0, 2**32))
def test_a_crop_holds_a_wanted_pixel_wherever_there_is_one(mask, size, focus, seed):
    corner = find_corner(mask, size, np.random.default_rng(seed), WANTED[focus])
    wanted = (mask != IGNORE) & ((mask != 0) | (focus == "balanced"))
    if corner is None:
        assert not wanted.any()
        return
    top, left = corner
    assert 0 <= top <= mask.shape[0] - size
    assert 0 <= left <= mask.shape[1] - size
    assert wanted[top : top + size, left : left + size].any()


@pytest.mark.parametrize("focus", ["foreground", "balanced"])
def test_corners_come_as_often_as_a_list_of_all_pixels_and_crops_says(focus):
    """5,000 draws against exact probabilities: each within five standard deviations."""
    mask = draw_mask(6, 7, 1, 9)
    exact = chances(mask, 3, focus)
    assert sum(exact.values()) == 1
    rng, count = np.random.default_rng(0), 5_000
    found = Counter(find_corner(mask, 3, rng, WANTED[focus]) for _ in range(count))
    assert found.keys() <= exact.keys()
    for corner, chance in exact.items():
        expected = float(chance) * count
        assert abs(found[corner] - expected) < 5 * np.sqrt(expected * (1 - float(chance))), corner


@pytest.mark.parametrize("focus", ["foreground", "balanced"])
def test_masks_without_a_wanted_pixel_have_no_corner(focus):
    rng = np.random.default_rng(0)
    assert find_corner(np.full((5, 5), IGNORE, np.uint8), 3, rng, WANTED[focus]) is None
    empty = find_corner(np.zeros((5, 5), np.uint8), 3, rng, WANTED[focus])
    assert (empty is None) == (focus == "foreground")


def rare(height=96, width=96):
    """A picture of class 0 with 9 pixels of class 1, 1 of class 2 and a frame of void."""
    ids = np.zeros((height, width), np.uint8)
    ids[30:33, 70:73], ids[80, 10] = 1, 2
    ids[:2], ids[:, :2] = IGNORE, IGNORE
    return np.random.default_rng(0).integers(1, 256, (height, width, 3)).astype(np.uint8), ids


def frequencies(augment, draws=400):
    """The share of the crops that hold each of the classes 0, 1 and 2."""
    picture, ids = rare()
    crops = [augment(picture, ids, draw)["mask"] for draw in range(draws)]
    assert {crop.shape for crop in crops} == {(CROP, CROP)}
    return np.array([[(crop == label).any() for label in range(3)] for crop in crops]).mean(0)


def test_without_focus_rare_classes_are_rarely_seen():
    assert (frequencies(Augment("none", CROP, 1))[1:] < 0.2).all()


def test_focus_moves_the_frequencies_as_its_share_says():
    """9 of the 10 foreground pixels are of class 1; of three classes each is meant in a third of the crops."""
    plain = frequencies(Augment("none", CROP, 1))
    for share in (0.3, 1.0):
        found = frequencies(Augment("none", CROP, 1, focus="foreground", focus_share=share))
        assert found[1] == pytest.approx(share * 0.9 + (1 - share) * plain[1], abs=0.07)
        assert found[2] == pytest.approx(share * 0.1 + (1 - share) * plain[2], abs=0.07)
        found = frequencies(Augment("none", CROP, 1, focus="balanced", focus_share=share))
        thirds = share / 3 + (share / 3 + 1 - share) * plain[1:]  # those around class 0 may show the others, too
        assert found[1:] == pytest.approx(thirds, abs=0.08)
    with_both = frequencies(Augment("none", CROP, 1, focus="foreground", focus_share=1.0))
    assert with_both[1] + with_both[2] == 1  # the two are further from each other than a crop is wide


@pytest.mark.parametrize("steps", ["light", "strong", "microscopy", [{"Rotate": {"limit": 180, "p": 1.0}}]])
def test_focus_is_exact_after_scaling_and_turning(steps):
    """The crop is laid in what was scaled: whatever class 1 became, some of it is in the crop."""
    augment = Augment(steps, CROP, 2, focus="foreground", focus_share=1.0)
    rng = np.random.default_rng(0)
    ids = np.zeros((80, 90), np.uint8)
    for y, x in rng.integers(3, 77, (6, 2)):
        ids[y : y + 3, x : x + 3] = 1
    picture = rng.integers(1, 256, (80, 90, 3)).astype(np.uint8)
    for draw in range(60):
        assert (augment(picture, ids, draw)["mask"] == 1).any()


def test_focus_takes_pictures_smaller_than_a_crop():
    picture, ids = make_masked(10, 60, 0)
    for focus in ("foreground", "balanced"):
        mask = Augment("none", CROP, 2, focus=focus, focus_share=1.0)(picture, ids, 0)["mask"]
        assert (mask == IGNORE).sum() == 14 * CROP


def test_pictures_without_foreground_are_cropped_anywhere():
    augment = Augment("none", CROP, 2, focus="foreground", focus_share=1.0)
    picture = np.zeros((60, 60, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.mgrid[:60, :60]
    corners = {tuple(augment(picture, picture[..., 2], draw)["image"][0, 0, :2].tolist()) for draw in range(40)}
    assert len(corners) > 30


def test_whether_a_draw_has_focus_is_a_function_of_seed_and_draw():
    picture, ids = rare()
    options = {"focus": "balanced", "focus_share": 0.5}
    one, other, else_ = (Augment("strong", CROP, seed=seed, **options) for seed in (3, 3, 4))
    backwards = [other(picture, ids, draw) for draw in reversed(range(12))][::-1]
    differing = 0
    for draw, found in enumerate(backwards):
        first = one(picture, ids, draw)
        assert all((first[key] == found[key]).all() for key in ("image", "mask"))
        differing += (first["image"] != else_(picture, ids, draw)["image"]).any()
    assert differing == 12


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_without_focus_its_share_means_nothing(name):
    picture, ids = make_masked(50, 60, 0)
    plain, none = Augment(name, CROP, 1), Augment(name, CROP, 1, focus="none", focus_share=0.5)
    assert (plain(picture, ids, 5)["image"] == none(picture, ids, 5)["image"]).all()


def test_a_pipeline_that_leaves_nothing_to_choose_is_refused(tmp_path):
    pairs = pair_masks([str(write_masked(tmp_path / "data"))], [])
    steps = [{"RandomResizedCrop": {"size": [CROP, CROP]}}]
    message = (
        r"data\.focus=foreground: has nothing to choose, since data\.augment ends with RandomResizedCrop to 24x24; "
        r"remove one of the two"
    )
    with pytest.raises(ConfigError, match=message):
        MaskedImages(pairs, 3, 255, Augment(steps, CROP, 1, focus="foreground", focus_share=0.5))
    assert len(MaskedImages(pairs, 3, 255, Augment(steps, CROP, 1)))


class Fingerprints(MaskedImages):
    """Masked images whose items are a hash of what would be drawn."""

    def __getitem__(self, item):
        image, ids = super().__getitem__(item)
        return hash((image.numpy().tobytes(), ids.numpy().tobytes()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_crops_with_focus_are_the_same_with_any_number_of_workers(tmp_path):
    pairs = pair_masks([str(write_masked(tmp_path / "data", height=64, width=72))], [])
    data = Fingerprints(pairs, 3, 255, Augment("light", CROP, 7, focus="balanced", focus_share=0.5))
    streams = [
        torch.cat(list(islice(DataLoader(data, 6, sampler=Draws(len(data), seed=7), num_workers=workers), 10))).tolist()
        for workers in (0, 1, 2)
    ]
    assert streams[0] == streams[1] == streams[2]
    assert len(set(streams[0])) == 60


def test_an_augmentation_with_focus_can_be_handed_to_a_process_of_its_own():
    picture, ids = rare()
    augment = Augment([{"HorizontalFlip": {"p": 0.5}}], CROP, 1, focus="balanced", focus_share=1.0)
    copy = pickle.loads(pickle.dumps(augment))
    assert (copy(picture, ids, 4)["image"] == augment(picture, ids, 4)["image"]).all()


def test_a_corner_is_drawn_from_the_generator_alone():
    mask = make_masked(64, 64, 0)[1]
    corners = [find_corner(mask, 16, draw_rng(0, draw), range(3)) for draw in range(5)]
    assert corners == [find_corner(mask, 16, draw_rng(0, draw), range(3)) for draw in range(5)]
    assert len(set(corners)) == 5

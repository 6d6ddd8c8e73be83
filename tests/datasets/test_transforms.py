from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from densekit.datasets.transforms import AUGMENTATIONS, Augment
from densekit.losses import IGNORE
from tests.training_data import make_masked

CROP = 24


def marked(height=20, width=20):
    """A picture whose every pixel is odd, so that padding, which is 0, can be told, and labels 1, 4 and 9."""
    ids = np.array([1, 4, 9], np.uint8)[make_masked(height, width, 0)[1]]
    return np.full((height, width, 3), 201, np.uint8), ids


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_crops_have_the_asked_size_and_only_labels_that_were_there(name):
    """An interpolated label would lie between two of them: 4 between 1 and 9, and 2 where there is none."""
    augment = Augment(name, CROP, seed=1)
    picture, ids = make_masked(50, 60, 0)
    labels = np.array([1, 4, 9], np.uint8)[ids]
    for draw in range(40):
        varied = augment(picture, labels, draw)
        assert varied["image"].shape == (CROP, CROP, 3)
        assert varied["mask"].shape == (CROP, CROP)
        assert varied["image"].dtype == varied["mask"].dtype == np.uint8
        assert set(np.unique(varied["mask"])) <= {1, 4, 9}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_padding_is_void_and_no_class(name):
    augment = Augment(name, CROP, seed=1)
    picture, ids = marked()
    shares = []
    for draw in range(40):
        mask = augment(picture, ids, draw)["mask"]
        assert set(np.unique(mask)) <= {1, 4, 9, IGNORE}
        assert 0 not in mask  # what albumentations fills in by itself: the first class
        shares.append((mask == IGNORE).mean())
    assert max(shares) >= 1 - 20 * 20 / CROP**2 - 1e-9
    if name == "none":
        varied = augment(picture, ids, 0)
        assert ((varied["mask"] == IGNORE) == (varied["image"][..., 0] == 0)).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_image_and_mask_move_together(name):
    """Each pixel still has the brightness of its label, but where a border was blurred."""
    augment = Augment(name, CROP, seed=2)
    _, ids = make_masked(60, 60, 1)
    picture = np.repeat(20 + 100 * ids[..., None], 3, axis=2).astype(np.uint8)
    for draw in range(25):
        varied = augment(picture, ids, draw)
        pixels, mask = varied["image"].astype(int), varied["mask"]
        means = np.array([pixels[mask == label].mean(0) for label in np.unique(mask)])
        nearest = np.abs(pixels[:, :, None] - means).sum(-1).argmin(-1)
        assert (np.unique(mask)[nearest] == mask).mean() > 0.8


def test_scales_and_flips_vary():
    """A ramp from left to right: its direction tells the flip, its slope the scale."""
    picture = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 60, 0).repeat(3, 2)
    slopes = np.array(
        [
            np.diff(
                Augment("light", CROP, seed=0)(picture, picture[..., 0] * 0, draw)["image"][3, :, 0].astype(int)
            ).mean()
            for draw in range(40)
        ]
    )
    assert 8 <= (slopes > 0).sum() <= 32
    scales = 4 / np.abs(slopes)
    assert scales.min() == pytest.approx(0.75, abs=0.1)
    assert scales.max() == pytest.approx(1.25, abs=0.1)


def test_microscopy_shows_every_stain_and_grey():
    """Which channel is the strongest of a violet picture, or that all are alike."""
    augment = Augment("microscopy", CROP, seed=0)
    picture = np.full((CROP, CROP, 3), (120, 60, 180), np.uint8)
    colours = [augment(picture, picture[..., 0] * 0, draw)["image"].reshape(-1, 3).astype(int) for draw in range(80)]
    colours = [pixels[pixels.any(1)].mean(0) for pixels in colours]  # without padding
    grey = [colour for colour in colours if np.ptp(colour) < 2]
    assert 5 <= len(grey) <= 40
    assert {int(colour.argmax()) for colour in colours if np.ptp(colour) > 10} == {0, 1, 2}


def test_microscopy_reaches_all_eight_orientations():
    augment = Augment("microscopy", CROP, seed=0)
    y, x = np.mgrid[:CROP, :CROP] * 4 // CROP
    ids = (4 * y + x).astype(np.uint8)  # 16 fields, enlarged or reduced they keep their order
    image = np.full((CROP, CROP, 3), 100, np.uint8)
    seen = set()
    for draw in range(150):
        mask = augment(image, ids, draw)["mask"].astype(int)
        inside = mask != IGNORE
        down = np.sign(np.diff(mask, axis=0)[inside[1:] & inside[:-1]].sum())
        step_down = np.abs(np.diff(mask, axis=0)[inside[1:] & inside[:-1]]).max()
        right = np.sign(np.diff(mask, axis=1)[inside[:, 1:] & inside[:, :-1]].sum())
        seen.add((down, right, step_down >= 4))
    assert len(seen) == 8


def test_a_draw_is_a_function_of_seed_and_number():
    picture, ids = make_masked(50, 60, 0)
    one, other, else_ = (Augment("strong", CROP, seed=seed) for seed in (3, 3, 4))
    for draw in (0, 1, 7, 2**40):
        first, second = one(picture, ids, draw), other(picture, ids, draw)
        assert all((first[key] == second[key]).all() for key in ("image", "mask"))
        assert (first["image"] != else_(picture, ids, draw)["image"]).any()


def test_draws_are_those_that_runs_in_progress_have_seen():
    """Known answers: other crops would break the resume of runs begun before."""
    picture, ids = make_masked(50, 60, 0)
    found = [int(Augment(name, CROP, seed=1)(picture, ids, 5)["mask"].astype(int).sum()) for name in AUGMENTATIONS]
    assert found == [836, 361, 462, 462]


# What `Augment(name, ...)` drew when the shipped models were trained, as SHA-256 of 82 crops: recipes must not change.
RECIPES = {
    "none": "6b8bf0ea7c15db00afd158ef266d7375dd174f7647622a485945281e7adb2b11",
    "light": "ee7e2d175d1308d1e685f48a47b87709ceb18e692e064f2ede04f56885d8680c",
    "strong": "90e749116a1739a900598c4674bc9383ad570f0d17d1f29cc93bc0b5699cd6a6",
    "microscopy": "3ad6d37cbcc95fd22d743e407d664c2640d460b6c412da0e2c5359283248bd54",
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_recipes_of_the_shipped_models_draw_the_very_pixels_they_drew(name):
    picture, ids = make_masked(50, 60, 0)
    digest = hashlib.sha256()
    for crop in (24, 56):
        augment = Augment(name, crop, seed=1)
        for draw in (*range(40), 2**40):
            varied = augment(picture, ids, draw)
            digest.update(varied["image"].tobytes())
            digest.update(varied["mask"].tobytes())
    assert digest.hexdigest() == RECIPES[name]


@pytest.mark.slow
def test_making_one_asks_no_host_for_a_newer_version():
    script = """if True:
        import socket, sys
        def refuse(*args, **kwargs):
            raise SystemExit("a connection was tried")
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        from densekit.datasets.transforms import Augment
        Augment("strong", 16, 0)
    """
    subprocess.run([sys.executable, "-c", script], check=True)

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from densekit.datasets.pairs import Pairs, make_pair, turned
from densekit.datasets.partners import pair_pictures
from densekit.datasets.pictures import list_pictures, read_rgb
from densekit.errors import DataError
from densekit.image import Picture, write_image
from densekit.resize import imresize
from tests.training_data import make_picture, write_pictures


def coordinates(height, width, scale):
    """A picture whose pixels say where they are, in low-resolution units."""
    y, x = np.mgrid[:height, :width] // scale
    return np.stack([y, x, np.zeros_like(x)], 2).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_low_resolution_is_the_benchmarks_and_the_high_is_cropped_to_fit(scale):
    picture = make_picture(37, 50, 0)
    lr, hr = make_pair(picture, scale)
    height, width = 37 // scale, 50 // scale
    assert (hr == picture[: height * scale, : width * scale]).all()
    assert lr.shape == (height, width, 3)
    assert (lr == imresize(hr, 1 / scale, mode="benchmark")).all()


def test_low_and_high_resolution_are_cropped_and_turned_alike(tmp_path):
    write_pictures(tmp_path, count=1)
    data = Pairs(pair_pictures([tmp_path]), scale=2, crop_size=8, seed=3)
    data.pairs = [(coordinates(20, 24, 1), coordinates(40, 48, 2))]
    places = set()
    for draw in range(100):
        lr, hr = data[draw, 0]
        assert (lr.shape, hr.shape, lr.dtype) == ((3, 8, 8), (3, 16, 16), torch.uint8)
        assert torch.equal(lr.repeat_interleave(2, 1).repeat_interleave(2, 2), hr)
        places.add((int(lr[0].min()), int(lr[1].min())))
    assert {y for y, _ in places} == set(range(13))  # every place is reachable, the last one too
    assert {x for _, x in places} == set(range(17))


def test_all_eight_orientations_are_reached_about_equally(tmp_path):
    write_pictures(tmp_path, count=1)
    data = Pairs(pair_pictures([tmp_path]), scale=2, crop_size=8, seed=0)
    data.pairs = [(coordinates(8, 8, 1), coordinates(16, 16, 2))]
    seen: dict[bytes, int] = {}
    for draw in range(800):
        key = data[draw, 0][0].numpy().tobytes()
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 8
    assert all(70 < count < 130 for count in seen.values())


def test_the_eight_orientations_are_those_of_a_square():
    square = coordinates(2, 2, 1)[..., 0] * 2 + coordinates(2, 2, 1)[..., 1]
    found = {tuple(turned(square, turn).ravel().tolist()) for turn in range(8)}
    # 0 1 / 2 3: corners stay neighbours
    assert found == {
        (0, 1, 2, 3), (1, 3, 0, 2), (3, 2, 1, 0), (2, 0, 3, 1), (1, 0, 3, 2), (0, 2, 1, 3), (2, 3, 0, 1), (3, 1, 2, 0),
    }  # fmt: skip


def test_a_draw_is_a_function_of_seed_and_number(tmp_path):
    write_pictures(tmp_path, count=2)
    one, other, else_ = (Pairs(pair_pictures([tmp_path]), 2, 8, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[draw, 1][1], other[draw, 1][1]) for draw in range(20))
    assert any(not torch.equal(one[draw, 1][1], else_[draw, 1][1]) for draw in range(20))
    assert any(not torch.equal(one[a, 1][1], one[b, 1][1]) for a, b in pairwise(range(20)))


def test_folders_count_as_often_as_they_are_named_and_shrunk_copies_join(tmp_path):
    write_pictures(tmp_path, count=3)
    assert len(Pairs(pair_pictures([tmp_path, tmp_path]), 2, 8, 0)) == 6
    data = Pairs(pair_pictures([tmp_path]), 2, 8, 0, shrink=(1, 0.5, 0.1))  # a tenth is smaller than a crop
    assert [hr.shape for _, hr in data.pairs] == 3 * [(40, 48, 3), (20, 24, 3)]
    assert len(data.paths) == 3


def test_pictures_smaller_than_a_crop_are_left_out_and_listed(tmp_path):
    write_pictures(tmp_path, count=2)
    write_image(tmp_path / "small.png", Picture(make_picture(39, 60, 0)))
    data = Pairs(pair_pictures([tmp_path]), 2, 20, 0)
    assert len(data) == 2
    assert data.left_out == [tmp_path / "small.png"]
    message = (
        r"no picture is 42x42, which a crop of 21 at scale 2 needs; lower train\.crop_size or give larger pictures"
    )
    with pytest.raises(DataError, match=message):
        Pairs(pair_pictures([tmp_path]), 2, 21, 0)


def test_a_crop_that_the_cut_to_a_multiple_leaves_too_large_is_none(tmp_path):
    """41 rows hold 13 of scale 3, and a crop of 13 needs 39."""
    write_image(tmp_path / "a.png", Picture(make_picture(41, 41, 0)))
    assert Pairs(pair_pictures([tmp_path]), 3, 13, 0)[0, 0][1].shape == (3, 39, 39)


def test_every_kind_of_picture_becomes_eight_bit_rgb(tmp_path):
    grey = make_picture(6, 5, 0)[..., :1]
    write_image(tmp_path / "grey.png", Picture(grey))
    assert (read_rgb(tmp_path / "grey.png") == np.repeat(grey, 3, 2)).all()
    write_image(tmp_path / "alpha.png", Picture(np.repeat(grey, 3, 2), alpha=grey[..., 0]))
    assert (read_rgb(tmp_path / "alpha.png") == np.repeat(grey, 3, 2)).all()
    deep = np.array([[[0, 128, 129], [385, 65535, 65406]]], np.uint16)  # halves lie at 128.5 + 257 n
    write_image(tmp_path / "deep.png", Picture(deep))
    assert read_rgb(tmp_path / "deep.png").tolist() == [[[0, 0, 1], [1, 255, 254]]]
    float_ = np.array([[[-1, 0.5, 2], [1, 0.001, 0.999]]], np.float32)
    write_image(tmp_path / "float.tif", Picture(float_))
    assert read_rgb(tmp_path / "float.tif").tolist() == [[[0, 128, 255], [255, 0, 255]]]


def test_folders_without_pictures_are_one_line(tmp_path):
    with pytest.raises(DataError, match="absent: no such folder; give one that holds pictures"):
        list_pictures([tmp_path / "absent"])
    with pytest.raises(DataError, match=r"no pictures \(png, jpg, tif, webp, bmp\) in this folder"):
        list_pictures([tmp_path])

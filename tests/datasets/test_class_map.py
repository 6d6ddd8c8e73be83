"""Masks in colours: every pixel the class its colour means, and every other colour named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densekit.config import parse_config
from densekit.datasets import class_map, masks
from densekit.datasets.checks import check_config, check_seg
from densekit.datasets.checks.text import text_lines
from densekit.datasets.class_map import ClassMap, count_colors
from densekit.datasets.masks import MaskedImages, pair_masks, read_pair
from densekit.errors import ConfigError, DataError
from densekit.image import Picture, read_mask, write_image, write_mask
from densekit.losses import IGNORE
from densekit.tasks import create_task
from tests.training_data import make_masked, recolour, seg_config, write_masked

PALETTE = np.array([[128, 64, 128], [70, 70, 70], [0, 0, 142]], np.uint8)
COLORS = {"#804080": 0, "#464646": 1, "#00008e": 2}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_colours_become_the_numbers_that_a_loop_over_pixels_gives(height, width, count, seed, band):
    rng = np.random.default_rng(seed)
    colours = np.unique(rng.integers(0, 256, (count, 3)), axis=0).astype(np.uint8)
    labels = rng.integers(0, 256, len(colours))
    wanted = {tuple(color): int(label) for color, label in zip(colours.tolist(), labels, strict=True)}
    rgb = colours[rng.integers(0, len(colours), (height, width))]
    rgb[rng.random((height, width)) < 0.1] = rng.integers(0, 256, 3)
    found = ClassMap({"#" + bytes(color).hex(): label for color, label in wanted.items()}).look_up(rgb)
    assert found.tolist() == [[wanted.get(tuple(pixel), -1) + 1 for pixel in row] for row in rgb.tolist()]


def test_large_masks_are_looked_up_in_bands_without_seams(monkeypatch):
    rgb = PALETTE[make_masked(64, 48, 0)[1]]
    whole = ClassMap(COLORS).look_up(rgb)
    for band in (1, 100, 48 * 7):
        monkeypatch.setattr(class_map, "_BAND", band)
        assert (ClassMap(COLORS).look_up(rgb) == whole).all()


def save_palette(path, ids):
    """A palette file whose own numbers are others than the class numbers."""
    shuffled = np.array([2, 0, 1], np.uint8)
    write_mask(path, shuffled[ids], PALETTE[np.argsort(shuffled)])


def save_turned(path, ids):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(PALETTE[np.rot90(ids)]).save(path, exif=exif)


@pytest.mark.parametrize(
    "save",
    [
        lambda path, ids: Image.fromarray(PALETTE[ids]).save(path),
        lambda path, ids: Image.fromarray(np.dstack((PALETTE[ids], ids * 0 + 255))).save(path),
        lambda path, ids: write_image(path.with_suffix(".bmp"), Picture(PALETTE[ids])),
        save_palette,
        save_turned,
    ],
    ids=["rgb", "rgba", "bmp", "palette", "exif"],
)
def test_any_file_in_colours_is_read_as_them(tmp_path, save):
    _, ids = make_masked(24, 40, 0)
    save(tmp_path / "m.png", ids)
    (path,) = tmp_path.iterdir()
    assert (ClassMap(COLORS).read(path) == ids).all()


def test_grey_and_black_and_white_are_colours_too(tmp_path):
    """The commonest binary masks hold 0 and 255."""
    _, ids = make_masked(24, 40, 0, 2)
    colors = ClassMap({"#000000": 0, "#FFFFFF": 1})
    Image.fromarray(ids * np.uint8(255)).save(tmp_path / "grey.png")
    Image.fromarray(ids * np.uint8(255)).convert("1").save(tmp_path / "bits.png")
    assert (colors.read(tmp_path / "grey.png") == ids).all()
    assert (colors.read(tmp_path / "bits.png") == ids).all()


def test_without_a_class_map_palettes_keep_their_numbers(tmp_path):
    _, ids = make_masked(24, 40, 0)
    save_palette(tmp_path / "m.png", ids)
    write_image(tmp_path / "i.png", Picture(make_masked(24, 40, 0)[0]))
    pair = tmp_path / "i.png", tmp_path / "m.png"
    assert (read_pair(*pair, 3, 255)[1] == np.array([2, 0, 1], np.uint8)[ids]).all()
    assert (read_pair(*pair, 3, 255, ClassMap({}))[1] == np.array([2, 0, 1], np.uint8)[ids]).all()
    assert (read_pair(*pair, 3, 255, ClassMap(COLORS))[1] == ids).all()


def test_void_of_a_class_map_is_that_of_the_config(tmp_path):
    _, ids = make_masked(24, 40, 0)
    write_image(tmp_path / "i.png", Picture(make_masked(24, 40, 0)[0]))
    Image.fromarray(PALETTE[ids]).save(tmp_path / "m.png")
    for void in (255, 11):
        colors = ClassMap({**COLORS, "#00008e": void})
        found = read_pair(tmp_path / "i.png", tmp_path / "m.png", 2, void, colors)[1]
        assert (found == np.where(ids == 2, IGNORE, ids)).all()


def test_colours_that_are_not_in_the_map_are_named_with_their_file(tmp_path):
    _, ids = make_masked(24, 40, 0)
    rgb = PALETTE[ids]
    rgb[3, :5] = 7, 8, 255
    Image.fromarray(rgb).save(tmp_path / "m.png")
    message = (
        r"m\.png: colour #0708ff in 5 pixels is not in data\.class_map; add it there \(`densekit seg check` proposes a "
        r"map\)"
    )
    with pytest.raises(DataError, match=message):
        ClassMap(COLORS).read(tmp_path / "m.png")
    for number in range(6):
        rgb[4 + number, : 6 + number] = 0, number, 0
    Image.fromarray(rgb).save(tmp_path / "m.png")
    message = (
        r"m\.png: colours #000500, #000400, #000300, #000200, \.\.\. \(7 of them\) in 56 pixels are not in "
        r"data\.class_map; add them there \(`densekit seg check` proposes a map\)"
    )
    with pytest.raises(DataError, match=message):
        ClassMap(COLORS).read(tmp_path / "m.png")


def test_masks_that_were_compressed_are_called_what_they_are(tmp_path):
    Image.fromarray(PALETTE[make_masked(48, 64, 0)[1]]).save(tmp_path / "m.jpg", quality=60)
    message = (
        r"m\.jpg: colours .* \(more than 64 of them\) in \d+ pixels are not in data\.class_map; they look compressed"
    )
    with pytest.raises(DataError, match=message):
        ClassMap(COLORS).read(tmp_path / "m.jpg")


def test_masks_of_sixteen_bits_are_no_colours(tmp_path):
    write_mask(tmp_path / "m.png", np.array([[0, 300]], np.uint16))
    message = (
        r"m\.png: has uint16 samples, but the colours of data\.class_map have 8 bits; save it with 8 bits, or remove "
        r"data\.class_map if it holds class numbers"
    )
    with pytest.raises(DataError, match=message):
        ClassMap(COLORS).read(tmp_path / "m.png")


def test_colours_are_counted_by_falling_number_of_pixels():
    rgb = np.array([[[1, 2, 3]] * 3 + [[9, 9, 9]] * 5 + [[0, 2, 3]] * 3], np.uint8)
    assert list(count_colors(rgb).items()) == [((9, 9, 9), 5), ((0, 2, 3), 3), ((1, 2, 3), 3)]
    assert len(count_colors(np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8))) == 65


@pytest.fixture
def pictures(tmp_path):
    return recolour(write_masked(tmp_path / "data", 4, 48, 64), PALETTE)


def of(folder, **data):
    return seg_config(folder, data={"class_map": COLORS, **data})


def test_masks_in_colours_hold_the_same_classes_as_masks_of_numbers(tmp_path, pictures):
    plain = MaskedImages(pair_masks([str(write_masked(tmp_path / "plain", 4, 48, 64))], []), 3, 255)
    coloured = MaskedImages(pair_masks([str(pictures)], []), 3, 255, class_map=COLORS)
    for one, other in zip(plain.samples, coloured.samples, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    for one, other in zip(plain.class_pixels(3), coloured.class_pixels(3), strict=True):
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize("cache", [False, True])
def test_weights_of_classes_take_no_second_look_at_any_file(tmp_path, pictures, monkeypatch, cache):
    read, calls = masks.read_pair, []
    monkeypatch.setattr(masks, "read_pair", lambda *args: calls.append(args[0]) or read(*args))
    data = {"class_map": COLORS, "cache": str(tmp_path / "cache") if cache else None}
    config = seg_config(pictures, data=data, class_weights="median-freq")
    task = create_task(config)
    assert len(calls) == (4 if cache else 8)  # the validation images are the same four
    assert task._class_weights() is not None
    assert "shares of the classes" in task.describe_data()
    assert len(calls) == (4 if cache else 8)
    if cache:
        again = create_task(config)
        assert len(calls) == 4
        assert again._class_weights().tolist() == task._class_weights().tolist()


def test_another_class_map_is_not_taken_from_the_cache_of_the_first(tmp_path, pictures):
    cache = str(tmp_path / "cache")
    one = MaskedImages(pair_masks([str(pictures)], []), 3, 255, class_map=COLORS, cache=cache)
    swapped = {**COLORS, "#804080": 1, "#464646": 0}
    other = MaskedImages(pair_masks([str(pictures)], []), 3, 255, class_map=swapped, cache=cache)
    assert other.class_pixels(3)[0].tolist() == one.class_pixels(3)[0][[1, 0, 2]].tolist()


def test_numbers_that_are_no_classes_are_refused_before_any_picture_is_read(tmp_path):
    config = seg_config(tmp_path / "absent", data={"class_map": {"#ff0000": 3, "#00ff00": 0}})
    message = (
        r"data\.class_map: #ff0000 is class 3, but there are 3 classes \(0\.\.2\), and void is data\.ignore_index=255"
    )
    with pytest.raises(ConfigError, match=message):
        create_task(config)


def test_the_check_of_a_config_reads_masks_as_training_does(pictures):
    config = of(pictures)
    result = check_config(config)
    assert {fault.kind for fault in result.faults} == {"leak"}  # its validation data are its training data
    own = create_task(config).data.class_pixels(3)[0]
    assert [record["pixels"] for record in result.facts["train"]["classes"]] == own.tolist()
    rgb = np.array(Image.open(pictures / "masks" / "1.png"))
    rgb[:2, :3], rgb[5, 5] = (1, 1, 1), (255, 255, 255)
    Image.fromarray(rgb).save(pictures / "masks" / "1.png")
    result = check_config(config)
    (fault,) = {str(fault) for fault in result.errors if fault.kind != "leak"}
    assert fault.endswith(
        "1.png: colours #010101, #ffffff (2 of them) in 7 pixels are not in data.class_map; set data.class_map to the "
        "proposed one, its numbers as you mean them"
    )
    assert result.facts["proposed_class_map"] == {**COLORS, "#010101": 3, "#ffffff": 4}
    write_mask(pictures / "masks" / "2.png", np.full((48, 64), 300, np.uint16))
    assert "colour-depth" in check_config(config).kinds


def pasted(lines):
    """What a person copies from the output of the check into a config."""
    return next(line for line in lines if line.strip().startswith("class_map:"))


@pytest.mark.parametrize("binary", [False, True])
def test_the_proposed_map_can_be_pasted_into_a_config_that_then_trains(tmp_path, binary):
    """Of masks in colours, and of those that hold 0 and 255."""
    folder = write_masked(tmp_path / "data", 4, 48, 64, classes=2 if binary else 3)
    truth = MaskedImages(pair_masks([str(folder)], []), 3, 255).class_pixels(3)[0]
    for path in (folder / "masks").iterdir():
        ids = read_mask(path)
        Image.fromarray(ids * np.uint8(255) if binary else PALETTE[ids]).save(path)
    proposal = check_seg([folder])
    assert {fault.kind for fault in proposal.errors} == {"binary-255" if binary else "colour-mask"}
    text = f"""\
task: seg
model: {{name: fc_densenet, num_classes: {1 if binary else 3}, num_pools: 2, num_layers: 2, growth_rate: 4}}
data:
  train: {folder}
{pasted(text_lines(proposal))}
train: {{total_steps: 1, crop_size: 32}}
"""
    assert yaml.safe_load(text)["data"]["class_map"] == proposal.facts["proposed_class_map"]
    config = parse_config(text)
    assert not check_config(config).errors
    found = create_task(config).data.class_pixels(3)[0]
    if binary:
        assert found.tolist() == truth.tolist()
    else:
        assert found.tolist() == sorted(truth.tolist(), reverse=True)  # the proposal goes by number of pixels
    override = [f"data.class_map={json.dumps(proposal.facts['proposed_class_map'])}"]
    assert parse_config(text.replace(pasted(text_lines(proposal)), ""), override) == config


def test_grey_masks_of_three_channels_keep_their_numbers(tmp_path):
    folder = write_masked(tmp_path / "data")
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.dstack([read_mask(path)] * 3)).save(path)
    result = check_seg([folder])
    assert result.facts["proposed_class_map"] == {"#000000": 0, "#010101": 1, "#020202": 2}
    assert {fault.next_step for fault in result.errors} == {
        "set data.class_map to the proposed one, its numbers as you mean them"
    }

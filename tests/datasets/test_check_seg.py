"""Faults planted in good data: all found in one run, and none in the good data itself."""

from __future__ import annotations

import os
import struct
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.datasets.checks import check_config, check_seg
from densekit.errors import ConfigError
from densekit.image import Picture, write_image, write_mask
from tests.training_data import make_masked, seg_config, write_masked

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def write_good(folder, count=3, seed=0, height=48):
    return write_masked(folder, count, height, 64, seed)


def check(folder, **options):
    options = {"num_classes": 3, "threads": 2, **options}
    return check_seg([folder / "images"], [folder / "masks"], **options)


def kinds_of(result):
    """{file name: its kinds}; "" for faults of the whole set."""
    found = defaultdict(set)
    for fault in result.faults:
        found[fault.path.name if fault.path else ""].add(fault.kind)
    return dict(found)


def add(folder, name, seed, image=None, mask=None):
    """Adds a good pair, of which `image` or `mask` may be replaced by a function of (path, picture, ids)."""
    picture, ids = make_masked(48, 64, seed)
    for part, make in (("images", image), ("masks", mask)):
        path = folder / part / f"{name}.png"
        if make is not None:
            make(path, picture, ids)
        elif part == "images":
            write_image(path, Picture(picture))
        else:
            write_mask(path, ids)


def png_of_size(width, height):
    """A PNG whose header claims a size that its few bytes do not hold."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def plant_all(folder):
    """Plants one fault after the other, each in a pair of its own; returns {file name: kind}."""
    images, masks = folder / "images", folder / "masks"
    expected = {}
    seeds = iter(range(1000, 2000))

    def plant(kind, name, image=None, mask=None, file=None):
        add(folder, name, next(seeds), image, mask)
        expected[file or f"{name}.png"] = kind

    def saved(array_of, **options):
        return lambda path, picture, ids: Image.fromarray(array_of(picture, ids)).save(path, **options)

    def turned_by_exif(path, picture, ids):
        exif = Image.Exif()
        exif[0x112] = 6
        Image.fromarray(picture).save(path, exif=exif)

    plant("empty-file", "empty", image=lambda path, *_: path.write_bytes(b""))
    plant("not-a-picture", "text", image=lambda path, *_: path.write_bytes(b"<html>not found</html>"))
    plant("truncated", "cut", image=lambda path, p, ids: (
        Image.fromarray(p).save(path), path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])))  # fmt: skip
    plant("unreadable", "rotten", mask=lambda path, p, ids: (
        write_mask(path, ids), path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAX"))))  # fmt: skip
    plant("animated", "moves", image=lambda path, p, ids: Image.fromarray(p).save(
        path, "WEBP", save_all=True, append_images=[Image.fromarray(255 - p)], lossless=True))  # fmt: skip
    plant("too-many-pixels", "bomb", mask=lambda path, *_: path.write_bytes(png_of_size(20_000, 20_000)))
    plant("no-mask", "alone", mask=lambda *_: None)
    plant("no-image", "left", image=lambda *_: None)
    plant("same-stem", "twice", mask=lambda path, p, ids: (
        write_mask(path, ids), Image.fromarray(ids).save(path.with_suffix(".bmp"))))  # fmt: skip
    plant("size", "smaller", mask=saved(lambda p, ids: ids[:40]))
    plant("orientation", "exif", image=turned_by_exif)
    plant("colour-mask", "colours", mask=saved(lambda p, ids: COLORS[ids]))
    plant("label", "outside", mask=saved(lambda p, ids: np.where(ids == 2, 3 + (ids.cumsum(1) > 60), ids).astype("u1")))
    plant("lossy-labels", "scaled", mask=lambda path, p, ids: Image.fromarray(100 * ids).resize(
        (32, 24)).resize((64, 48), Image.Resampling.BICUBIC).save(path))  # fmt: skip
    plant("lossy-format", "jpeg", file="jpeg.jpg", mask=lambda path, p, ids: Image.fromarray(
        ids * 0).save(path.with_suffix(".jpg")))  # fmt: skip
    plant("constant", "one", mask=saved(lambda p, ids: ids * 0 + 1))
    plant("all-void", "void", mask=saved(lambda p, ids: ids * 0 + 255))
    plant("mode", "alpha", image=saved(lambda p, ids: np.dstack((p, p[..., 0]))))
    plant("mode", "cmyk", file="cmyk.jpg", image=lambda path, p, ids: Image.fromarray(p).convert("CMYK").save(
        path.with_suffix(".jpg")))  # fmt: skip
    plant("mode", "deep", image=lambda path, p, ids: write_image(path, Picture(p.astype(np.uint16) * 257)))
    plant("mixed-grey", "grey", image=saved(lambda p, ids: p[..., 0]))
    plant("duplicate", "same", image=lambda path, *_: path.write_bytes((images / "0.png").read_bytes()))
    plant("near-duplicate", "similar", file="similar.jpg", image=lambda path, *_: Image.open(images / "1.png").save(
        path.with_suffix(".jpg"), quality=90))  # fmt: skip
    plant("small", "small", image=saved(lambda p, ids: p[:16]), mask=saved(lambda p, ids: ids[:16]))
    for name, first in (("map", (9, 9, 9)), ("remap", (9, 9, 9)), ("other", (200, 9, 9))):
        table = np.array([first, (1, 2, 3), (4, 5, 6)], np.uint8)
        add(folder, name, next(seeds), mask=lambda path, p, ids, table=table: write_mask(path, ids, table))
    expected["other.png"] = "palette-differs"

    (images / "old.gif").write_bytes(b"GIF89a")
    expected["old.gif"] = "other-format"
    (masks / "gone.png").symlink_to(folder / "nowhere.png")
    expected["gone.png"] = "broken-link"
    (images / "loop.png").symlink_to("loop.png")
    expected["loop.png"] = "broken-link"
    (images / "around").symlink_to(images)
    expected["around"] = "folder-link"
    os.mkfifo(masks / "pipe.png")
    expected["pipe.png"] = "not-a-file"
    add(folder, "Case", next(seeds))
    add(folder, "case", next(seeds))
    expected["case.png"] = "case"
    return expected


def test_every_planted_fault_is_found_in_one_run(tmp_path):
    folder = write_good(tmp_path / "train")
    expected = plant_all(folder)
    found = kinds_of(check(folder, crop_size=24))
    missing = {name: kind for name, kind in expected.items() if kind not in found.get(name, ())}
    assert not missing
    assert len(set(expected.values())) >= 27


def test_what_is_not_planted_is_not_reported(tmp_path):
    folder = write_good(tmp_path / "train")
    expected = plant_all(folder)
    found = kinds_of(check(folder, crop_size=24))
    twins = {"twice.bmp", "", "rotten.png", "jpeg.jpg"}  # the other of two, the set, and what a fault brings with it
    assert set(found) - set(expected) - twins == set()


def test_good_data_has_no_faults(tmp_path):
    train, val = write_good(tmp_path / "train", 6), write_good(tmp_path / "val", 3, seed=500)
    result = check(train, val_images=[val / "images"], val_masks=[val / "masks"], crop_size=24)
    assert [str(fault) for fault in result.faults] == []
    assert result.facts["train"]["pictures"] == result.facts["train"]["masks"] == 6


def test_folders_that_hold_images_and_masks_need_no_more(tmp_path):
    assert not check_seg([write_good(tmp_path / "a"), write_good(tmp_path / "b", seed=50)], threads=1).faults


def test_missing_empty_and_unpaired_folders_are_named(tmp_path):
    (tmp_path / "images").mkdir()
    result = check(tmp_path)
    assert kinds_of(result) == {"images": {"empty-folder"}, "masks": {"missing-folder"}}
    assert [fault.severity for fault in result.faults] == ["error", "error"]
    with pytest.raises(ConfigError, match="found 1 mask folders for 2 image folders"):
        check_seg([tmp_path, tmp_path], [tmp_path])


def test_a_void_label_that_is_not_the_one_given_is_told_apart_from_wrong_labels(tmp_path):
    folder = write_good(tmp_path / "train")
    for path in sorted((folder / "masks").iterdir()):
        ids = np.array(Image.open(path))
        ids[:4] = 3
        write_mask(path, ids)
    result = check(folder)
    assert {fault.kind for fault in result.faults} == {"void-id"}
    assert str(result.faults[0]).endswith(
        "0.png: label 3 in 256 pixels, the only one in the data that is no class; expected 0..2 and 255 for void; "
        "if it means void, set ignore_index to 3"
    )
    assert not check(folder, ignore_index=3).faults


def test_masks_of_0_and_255_are_told_how_they_would_be_read(tmp_path):
    folder = write_good(tmp_path / "train")
    for path in (folder / "masks").iterdir():
        Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    (fault, *_) = check(folder, num_classes=2).errors
    assert fault.kind == "binary-255"
    assert "255 is read as void (ignore_index 255), not as foreground" in fault.message
    for path in (folder / "masks").iterdir():
        Image.open(path).convert("1").save(path)
    assert not check(folder, num_classes=2).faults


def test_colours_get_a_class_map(tmp_path):
    folder = write_good(tmp_path / "train")
    counts = np.zeros(3, int)
    for path in (folder / "masks").iterdir():
        ids = np.array(Image.open(path))
        counts += np.bincount(ids.ravel(), minlength=3)
        Image.fromarray(COLORS[ids]).save(path)
    result = check(folder, num_classes=None)
    assert {fault.kind for fault in result.errors} == {"colour-mask"}
    names = ["#ff0000", "#00ff00", "#0000ff"]
    expected = {names[i]: place for place, i in enumerate(np.argsort(-counts))}
    assert result.facts["proposed_class_map"] == expected
    palette = [(0, 0, 255), (255, 0, 0), (0, 255, 0)]
    assert check(folder, palette=palette).facts["proposed_class_map"] == dict(zip(names, (1, 2, 0), strict=True))


def test_instance_numbers_are_called_what_they_are(tmp_path):
    folder = write_good(tmp_path / "train", 1)
    Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) // 100).save(folder / "masks" / "0.png")
    (fault,) = check(folder, num_classes=2).errors
    assert fault.message.startswith("labels 2, 3, 4, ")
    assert "they look like numbers of instances" in fault.message


def test_classes_that_a_split_lacks_are_named(tmp_path):
    train, val = write_good(tmp_path / "train"), write_good(tmp_path / "val", seed=500)
    for path in (train / "masks").iterdir():
        ids = np.array(Image.open(path))
        write_mask(path, np.where(ids == 2, 1, ids))
    for path in (val / "masks").iterdir():
        ids = np.array(Image.open(path))
        write_mask(path, np.where(ids == 1, 2, ids))
    names = ["road", "sky", "tree", "sign"]
    result = check(train, num_classes=4, classes=names, val_images=[val / "images"], val_masks=[val / "masks"])
    assert [(fault.kind, fault.message) for fault in result.faults] == [
        ("class-split", "class 1 (sky) occurs in train but never in val: its score is undefined"),
        ("class-split", "class 2 (tree) occurs in val but never in train"),
        ("unused-class", "class 3 (sign) never occurs in train or val"),
    ]


def test_an_image_that_both_splits_hold_is_an_error(tmp_path):
    train, val = write_good(tmp_path / "train"), write_good(tmp_path / "val", seed=500)
    (val / "images" / "0.png").write_bytes((train / "images" / "1.png").read_bytes())
    Image.open(train / "images" / "2.png").save(val / "images" / "1.png", "JPEG", quality=92)
    result = check(train, val_images=[val / "images"], val_masks=[val / "masks"])
    assert [(fault.kind, fault.severity, fault.path.parent.parent.name) for fault in result.faults] == [
        ("leak", "error", "val"),
        ("near-leak", "warning", "val"),
    ]


def test_counts_and_weights_are_those_that_training_uses(tmp_path):
    from densekit.datasets.masks import MaskedImages, pair_masks
    from densekit.datasets.pictures import median_frequency_weights

    folder = write_good(tmp_path / "train", 4)
    for number, path in enumerate(sorted((folder / "masks").iterdir())):
        ids = np.array(Image.open(path))
        ids[: 4 * number] = 255
        write_mask(path, np.where(ids == number, 0, ids))
    records = check(folder, num_classes=4).facts["train"]["classes"]
    own, around = MaskedImages(pair_masks([str(folder)], []), 4, 255).class_pixels(4)
    assert [record["pixels"] for record in records] == own.tolist()
    weights = [record["median_frequency_weight"] for record in records]
    np.testing.assert_allclose(weights, median_frequency_weights(own, around), atol=5e-5)


def test_a_config_says_where_the_data_is_and_what_it_means(tmp_path):
    config = seg_config(write_good(tmp_path / "train"), crop_size=56)
    kinds = {fault.kind for fault in check_config(config).faults}
    assert kinds == {"small", "leak"}  # 48 rows; and its validation data are its training data
    assert {fault.kind for fault in check_config(config, num_classes=2, crop_size=16).faults} == {"void-id", "leak"}


def shared(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder


def test_camvid_has_the_published_counts_and_no_errors():
    folder = shared("camvid")
    result = check_seg(
        [folder / "train"], [folder / "trainannot"], val_images=[folder / "val"], val_masks=[folder / "valannot"],
        num_classes=11, ignore_index=11,
    )  # fmt: skip
    assert {fault.kind for fault in result.faults} == {"near-duplicate"}  # a car that waits at a light
    train, val = result.facts["train"], result.facts["val"]
    assert [record["pixels"] for record in train["classes"]] == [
        10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967,
    ]  # fmt: skip
    assert [record["images"] for record in train["classes"]] == [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201]
    assert [record["median_frequency_weight"] for record in train["classes"]] == [
        0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587,
    ]  # fmt: skip
    assert (train["void_pixels"], val["void_pixels"], val["labelled_pixels"]) == (2503995, 297271, 17155529)


def test_nuclei_are_good_data_and_their_instances_are_no_classes():
    folder = shared("nuclei")
    good = check_seg([folder / "val" / "image"], [folder / "val" / "mask"], num_classes=2)
    assert not good.faults
    wrong = check_seg([folder / "val" / "image"], [folder / "val" / "instances"], num_classes=2)
    assert wrong.kinds == {"label": 39}  # one picture shows a single nucleus

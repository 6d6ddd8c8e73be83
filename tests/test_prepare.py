"""The programs in data/ that bring a downloaded data set to where configs and evaluations look for it."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.archives import is_archive, unpack
from data.layout import LayoutError, pictures
from data.sources import Source, find_test_set, plain_name
from densekit.evaluate.sets import find_set, is_part
from densekit.image import read_image, read_mask
from densekit.metrics.seg_protocols import CITYSCAPES, SEG_PROTOCOLS
from densekit.tasks import create_task
from tests.training_data import seg_config, sr_config

ROOT = Path(__file__).parents[1]


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Returns the program of a data set, which writes into tmp_path / "data" / name."""

    def load(name, counts=None):
        module = importlib.import_module(f"data.{name}.prepare")
        monkeypatch.setattr(module, "TARGET", tmp_path / "data" / name)
        if counts is not None:
            monkeypatch.setattr(module, "COUNTS" if isinstance(counts, dict) else "COUNT", counts)
        return module

    return load


def fill(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


def draw(path, size, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)


def zip_up(archive, folder):
    with zipfile.ZipFile(archive, "w") as package:
        for path in sorted(folder.rglob("*")):
            package.write(path, path.relative_to(folder.parent))


def div2k(root, counts, scales=(2, 3, 4)):
    """The folders of DIV2K, with empty pictures."""
    for split, first in (("train", 1), ("valid", 801)):
        numbers = [f"{first + i:04}" for i in range(counts[split])]
        fill(root / f"DIV2K_{split}_HR", [f"{n}.png" for n in numbers])
        for scale in scales:
            fill(root / f"DIV2K_{split}_LR_bicubic" / f"X{scale}", [f"{n}x{scale}.png" for n in numbers])
    return root


def test_div2k_is_linked_with_the_low_resolution_there_is(tmp_path, program, capsys):
    module = program("div2k")
    module.place(div2k(tmp_path / "DIV2K", module.COUNTS, scales=(2,)))
    target = tmp_path / "data" / "div2k"
    assert len(pictures(target / "train/images", expected=800)) == 800
    assert len(pictures(target / "val/x2", expected=100)) == 100
    assert os.path.realpath(target / "val/x2/0801x2.png") == str(
        tmp_path / "DIV2K/DIV2K_valid_LR_bicubic/X2/0801x2.png"
    )
    assert not (target / "train/x3").exists()
    assert "x3: not in" in capsys.readouterr().out
    name, folder = find_set("DIV2K val", tmp_path)
    assert (name, folder, is_part(name, 100)) == ("DIV2K val", target / "val/images", None)


def test_div2k_is_read_from_its_archives(tmp_path, program, capsys):
    module = program("div2k", {"train": 3, "valid": 2})
    root = div2k(tmp_path / "unpacked", module.COUNTS)
    downloads = tmp_path / "Downloads"
    downloads.mkdir()
    for split in module.COUNTS:
        zip_up(downloads / f"DIV2K_{split}_HR.zip", root / f"DIV2K_{split}_HR")
        for scale in (2, 4):
            with zipfile.ZipFile(downloads / f"DIV2K_{split}_LR_bicubic_X{scale}.zip", "w") as package:
                for path in sorted((root / f"DIV2K_{split}_LR_bicubic" / f"X{scale}").iterdir()):
                    package.write(path, path.relative_to(root))
    module.place(downloads)
    target = tmp_path / "data" / "div2k"
    assert (target / "train/x4/0003x4.png").read_bytes() == b"0003x4.png"
    assert (target / "val/images/0802.png").read_bytes() == b"0802.png"
    assert capsys.readouterr().out.count("unpacking ") == 6
    module.place(downloads)
    assert "unpacking " not in capsys.readouterr().out  # once is enough


def test_what_div2k_lacks_is_said_before_anything_is_linked(tmp_path, program):
    module = program("div2k")
    fill(tmp_path / "DIV2K" / "DIV2K_train_HR", [f"{i:04}.png" for i in range(1, 801)])
    wanted = r"DIV2K: holds no folder DIV2K_valid_HR, nor an archive DIV2K_valid_HR\.\* with it; see the README beside"
    with pytest.raises(LayoutError, match=wanted):
        module.place(tmp_path / "DIV2K")
    assert not (tmp_path / "data" / "div2k" / "train").exists()
    fill(tmp_path / "DIV2K" / "DIV2K_valid_HR", ["0801.png"])
    with pytest.raises(LayoutError, match="DIV2K_valid_HR: 1 pictures, expected 100; see the README"):
        module.place(tmp_path / "DIV2K")


def test_flickr2k_is_read_from_its_archive(tmp_path, program):
    module = program("flickr2k", 3)
    fill(tmp_path / "Flickr2K" / "Flickr2K_HR", [f"{i:06}.png" for i in (1, 2, 3)])
    fill(tmp_path / "Flickr2K" / "Flickr2K_LR_bicubic" / "X2", [f"{i:06}x2.png" for i in (1, 2, 3)])
    with tarfile.open(tmp_path / "Flickr2K.tar", "w") as package:
        package.add(tmp_path / "Flickr2K", "Flickr2K")
    for source in (tmp_path / "Flickr2K.tar", tmp_path / "Flickr2K", tmp_path / "Flickr2K" / "Flickr2K_HR"):
        module.place(source)
        target = tmp_path / "data" / "flickr2k" / "train"
        assert (target / "images/000002.png").read_bytes() == b"000002.png"
        assert (target / "x2/000003x2.png").read_bytes() == b"000003x2.png"
        assert not (target / "x3").exists()


@pytest.mark.parametrize(
    ("name", "title", "count"), [("set14", "Set14", 14), ("b100", "B100", 100), ("manga109", "Manga109", 109)]
)
def test_a_test_set_is_found_however_it_is_laid_out(tmp_path, program, name, title, count):
    module = program(name)
    plain = [f"img_{i:03}.png" for i in range(1, count + 1)]
    exemplars = [f"img_{i:03}_SRF_4_{role}.png" for i in range(1, count + 1) for role in ("HR", "LR", "bicubic")]
    sources = [
        fill(tmp_path / "one" / "pictures", plain),
        fill(tmp_path / "two" / title / "HR", plain).parent,
        fill(tmp_path / "three" / title / "HR", plain).parents[1],
        fill(tmp_path / "four" / title / "image_SRF_4", exemplars).parent,
        fill(tmp_path / "five" / "image_SRF_4", exemplars),
        fill(tmp_path / "six" / f"{title}_HR", plain).parent,
        tmp_path / "seven" / f"{title}.zip",
        tmp_path / "eight" / "other.zip",
    ]
    (tmp_path / "seven").mkdir()
    zip_up(sources[-2], sources[1])
    (tmp_path / "eight").mkdir()
    zip_up(sources[-1], sources[0])
    sources.append(tmp_path / "seven")
    for number, source in enumerate(sources):
        module.TARGET = tmp_path / "data" / str(number) / "data" / name
        module.place(source)
        found = pictures(module.TARGET / "images")
        assert [path.name for path in found] == plain
        assert {path.read_bytes().decode() for path in found} in (set(plain), {n for n in exemplars if "HR" in n})
        known, folder = find_set(title, tmp_path / "data" / str(number))
        assert (known, folder, is_part(known, len(found))) == (title, module.TARGET / "images", None)
    with pytest.raises(LayoutError, match=rf"few: 2 pictures, expected {count}; see the README beside prepare\.py"):
        module.place(fill(tmp_path / "few", ["a.png", "b.png"]))


def test_b100_is_the_validation_part_of_bsds500(tmp_path, program):
    module = program("b100")
    root = tmp_path / "BSR" / "BSDS500" / "data" / "images"
    fill(root / "train", [f"{i}.jpg" for i in range(200)])
    fill(root / "val", [f"{i}.jpg" for i in range(200, 300)])
    for source in (tmp_path / "BSR", tmp_path / "BSR" / "BSDS500", tmp_path):
        module.place(source)
        assert {path.name for path in pictures(tmp_path / "data/b100/images")} == {f"{i}.jpg" for i in range(200, 300)}


def test_urban100_refuses_the_halved_pictures(tmp_path, program):
    module = program("urban100")
    for i in range(1, 101):
        for role, side in (("HR", 8), ("LR", 2)):
            draw(tmp_path / "Urban100/image_SRF_2" / f"img_{i:03}_SRF_2_{role}.png", (side, side))
            draw(tmp_path / "Urban100/image_SRF_4" / f"img_{i:03}_SRF_4_{role}.png", (side, side))
    draw(tmp_path / "Urban100/image_SRF_4/img_001_SRF_4_HR.png", (1024, 16))
    draw(tmp_path / "Urban100/image_SRF_2/img_001_SRF_2_HR.png", (512, 8))
    with pytest.raises(
        LayoutError, match="no picture has more than 512 pixels a side, but Urban100 has 1024: these are"
    ):
        module.place(tmp_path / "Urban100" / "image_SRF_2")
    assert not (tmp_path / "data" / "urban100").exists()
    module.place(tmp_path / "Urban100")
    assert os.path.realpath(tmp_path / "data/urban100/images/img_100.png").endswith("SRF_4/img_100_SRF_4_HR.png")


def voc(root, counts):
    """VOC2012 with palette masks, whose colours are no classes."""
    stems = {split: [f"2007_{i:06}{split[0]}" for i in range(count)] for split, count in counts.items()}
    rng = np.random.default_rng(0)
    for split, names in stems.items():
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            draw(root / "JPEGImages" / f"{name}.jpg", (20, 16))
            mask = Image.fromarray(rng.choice([0, 1, 15, 20, 255], (16, 20)).astype(np.uint8))
            mask.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
            (root / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(root / "SegmentationClass" / f"{name}.png")
    return stems


def test_voc_keeps_the_indexes_of_its_palette_masks(tmp_path, program):
    module = program("voc", {"train": 3, "val": 2})
    root = tmp_path / "VOCdevkit" / "VOC2012"
    stems = voc(root, module.COUNTS)
    with tarfile.open(tmp_path / "VOCtrainval_11-May-2012.tar", "w") as package:
        package.add(root.parent, "VOCdevkit")
    (tmp_path / "Downloads").mkdir()
    (tmp_path / "VOCtrainval_11-May-2012.tar").rename(tmp_path / "Downloads/VOCtrainval_11-May-2012.tar")
    archive = tmp_path / "Downloads" / "VOCtrainval_11-May-2012.tar"
    for source in (root, root.parent, tmp_path, archive, archive.parent):
        module.place(source)
        for split, names in stems.items():
            found = tmp_path / "data" / "voc" / split
            assert [path.stem for path in pictures(found / "images")] == names
            masks = [read_mask(found / "masks" / f"{name}.png") for name in names]
            assert {int(value) for mask in masks for value in np.unique(mask)} == {0, 1, 15, 20, 255}
    (root / "JPEGImages" / f"{stems['val'][0]}.jpg").unlink()
    with pytest.raises(LayoutError, match=r"v\.jpg: missing, and 0 more of val\.txt; unpack it again"):
        module.place(root)
    with pytest.raises(LayoutError, match=r"train\.txt: 3 names, expected 1464"):
        program("voc", {"train": 1464}).place(root)


def cityscapes(root, counts, ending, values):
    """leftImg8bit and gtFine of two cities; returns the ids of each frame."""
    frames = {}
    for split, count in counts.items():
        for i in range(count):
            city = ("ulm", "aachen")[i % 2]
            frame = f"{city}_{i:06}_000019"
            draw(root / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png", (24, 12), seed=i)
            ids = np.random.default_rng(i).choice(values, (12, 24)).astype(np.uint8)
            ids.flat[: len(values)] = values
            folder = root / "gtFine" / split / city
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(folder / f"{frame}_gtFine_{ending}.png")
            Image.fromarray(ids).save(folder / f"{frame}_gtFine_instanceIds.png")
            frames[f"{split}/{frame}"] = ids
    return frames


def test_cityscapes_masks_are_numbered_as_its_protocol_numbers_them(tmp_path, program):
    module = program("cityscapes", {"train": 4, "val": 3})
    frames = cityscapes(tmp_path / "cs", module.COUNTS, "labelIds", range(34))
    for name, folder in (("leftImg8bit_trainvaltest", "leftImg8bit"), ("gtFine_trainvaltest", "gtFine")):
        (tmp_path / "Downloads").mkdir(exist_ok=True)
        zip_up(tmp_path / "Downloads" / f"{name}.zip", tmp_path / "cs" / folder)
    train_ids = SEG_PROTOCOLS["cityscapes19"].train_ids
    for source in (tmp_path / "cs", tmp_path / "Downloads"):
        module.place(source)
        for frame, ids in frames.items():
            split, name = frame.split("/")
            mask = read_mask(tmp_path / "data/cityscapes" / split / "masks" / f"{name}.png")
            np.testing.assert_array_equal(mask, np.vectorize(lambda value: train_ids.get(value, 255))(ids))
            assert (tmp_path / "data/cityscapes" / split / "images" / f"{name}.png").is_file()
    assert set(np.unique(mask)) == {*range(len(CITYSCAPES)), 255}


def test_cityscapes_train_ids_are_linked_and_replaced_ones_stay_whole(tmp_path, program):
    module = program("cityscapes", {"train": 2, "val": 2})
    frames = cityscapes(tmp_path / "cs", module.COUNTS, "labelTrainIds", [*range(19), 255])
    module.place(tmp_path / "cs")
    for frame, ids in frames.items():
        split, name = frame.split("/")
        target = tmp_path / "data/cityscapes" / split / "masks" / f"{name}.png"
        assert target.is_symlink()
        np.testing.assert_array_equal(read_mask(target), ids)
    cityscapes(tmp_path / "cs", module.COUNTS, "labelIds", range(34))
    gone = sorted((tmp_path / "cs/gtFine").rglob("*_labelTrainIds.png"))[0]
    kept = {path: path.read_bytes() for path in (tmp_path / "cs").rglob("*TrainIds.png") if path != gone}
    gone.unlink()
    module.place(tmp_path / "cs")
    assert {path: path.read_bytes() for path in kept} == kept  # made masks are not written through old links
    sorted((tmp_path / "cs/gtFine/val").rglob("*_labelIds.png"))[0].unlink()
    sorted((tmp_path / "cs/gtFine/val").rglob("*_labelTrainIds.png"))[0].unlink()
    with pytest.raises(LayoutError, match=r"labelIds\.png: missing, and 0 more masks of val; unpack gtFine again"):
        module.place(tmp_path / "cs")
    with pytest.raises(LayoutError, match=r"train: 2 images, expected 2975"):
        program("cityscapes", {"train": 2975}).place(tmp_path / "cs")


def test_what_was_prepared_can_be_trained_on(tmp_path, program):
    module = program("voc", {"train": 3, "val": 2})
    voc(tmp_path / "VOC2012", module.COUNTS)
    module.place(tmp_path / "VOC2012")
    task = create_task(seg_config(tmp_path / "data/voc/train", num_classes=21, crop_size=16))
    assert task.describe_data().startswith("data: 3 images with masks to train on, 3 to evaluate on")

    module = program("div2k", {"train": 2, "valid": 1})
    for split, numbers in (("train", (1, 2)), ("valid", (801,))):
        for number in numbers:
            draw(tmp_path / f"DIV2K/DIV2K_{split}_HR/{number:04}.png", (48, 40))
            draw(tmp_path / f"DIV2K/DIV2K_{split}_LR_bicubic/X2/{number:04}x2.png", (24, 20), seed=number)
    module.place(tmp_path / "DIV2K")
    train, val = tmp_path / "data/div2k/train", tmp_path / "data/div2k/val"
    lows = {"lr": [str(train / "x2")], "val": [str(val / "images")], "val_lr": [str(val / "x2")]}
    task = create_task(sr_config(train / "images", data=lows))
    assert task.describe_data() == "data: 2 pictures as 2 pairs to train on, 1 to evaluate on"
    np.testing.assert_array_equal(task.val[0][0], read_image(val / "x2" / "0801x2.png").pixels)


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "C:\\out.txt", "a\\..\\out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_would_write_elsewhere_is_refused_whole(tmp_path, name, kind):
    archive = tmp_path / f"bad.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as package:
            package.writestr("fine.png", b"1")
            info = zipfile.ZipInfo("x")
            info.filename = name
            package.writestr(info, b"2")
    else:
        with tarfile.open(archive, "w") as package:
            for member in ("fine.png", name):
                info = tarfile.TarInfo(member)
                info.size = 1
                package.addfile(info, io.BytesIO(b"1"))
    with pytest.raises(LayoutError, match=r"in it would lie outside of its folder; nothing was unpacked$"):
        unpack(archive, tmp_path / "store")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]
    assert not (tmp_path / "store" / archive.name).exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_archives_are_refused(tmp_path, kind):
    archive = tmp_path / f"bad.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as package:
            info = zipfile.ZipInfo("link")
            info.external_attr = 0o120777 << 16
            package.writestr(info, "/etc/passwd")
    else:
        with tarfile.open(archive, "w") as package:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            package.addfile(info)
    with pytest.raises(LayoutError, match="'link' in it is no plain file; nothing was unpacked"):
        unpack(archive, tmp_path / "store")


def test_a_damaged_archive_leaves_nothing_that_counts_as_unpacked(tmp_path):
    fill(tmp_path / "set", ["a.png", "b.png"])
    zip_up(tmp_path / "set.zip", tmp_path / "set")
    whole = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(whole[:-30])
    with pytest.raises(
        LayoutError, match=r"set\.zip: cannot be unpacked: .*; download it again, or unpack it yourself"
    ):
        unpack(tmp_path / "set.zip", tmp_path / "store")
    damaged = bytearray(whole)
    damaged[whole.index(b"a.png", 40) + 2] ^= 1  # a stored byte: the checksum tells
    (tmp_path / "set.zip").write_bytes(damaged)
    with pytest.raises(LayoutError, match="cannot be unpacked: "):
        unpack(tmp_path / "set.zip", tmp_path / "store")
    (tmp_path / "set.zip").write_bytes(whole)
    root = unpack(tmp_path / "set.zip", tmp_path / "store")
    assert sorted(path.name for path in (root / "set").iterdir()) == ["a.png", "b.png"]


def test_an_archive_larger_than_the_disk_is_not_begun(tmp_path, monkeypatch):
    fill(tmp_path / "set", ["a.png"])
    zip_up(tmp_path / "set.zip", tmp_path / "set")
    usage = type("Usage", (), {"free": 3})
    monkeypatch.setattr("data.archives.shutil.disk_usage", lambda path: usage)
    with pytest.raises(LayoutError, match=r"set\.zip: needs 0\.0 GiB of disk, but 0\.0 GiB are free"):
        unpack(tmp_path / "set.zip", tmp_path / "store")


def test_a_source_that_is_neither_folder_nor_archive_is_refused(tmp_path):
    fill(tmp_path, ["notes.txt"])
    with pytest.raises(LayoutError, match=r"notes\.txt: neither a folder nor an archive \(zip, tar\); give your copy"):
        Source(tmp_path / "notes.txt", tmp_path)
    assert is_archive(fill(tmp_path, ["A.TAR.GZ"]) / "A.TAR.GZ")
    assert plain_name(Path("img_001_SRF_4_HR.png")) == "img_001.png"
    with pytest.raises(LayoutError, match="0 pictures, expected some"):
        find_test_set(Source(tmp_path, tmp_path), ["Set14"], 14)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "data").glob("*/prepare.py")))
def test_every_program_says_what_it_takes_and_every_readme_how_to_call_it(name):
    module = importlib.import_module(f"data.{name}.prepare")
    assert module.__doc__.startswith(f"Fills data/{name}/")
    assert "SOURCE is" in module.__doc__
    readme = (ROOT / "data" / name / "README.md").read_text("utf-8")
    for part in ("- Source: ", "- Licence: ", "- Layout: ", f"- Prepare: `python -m data.{name}.prepare "):
        assert part in readme
    assert f"[{name}]({name}/README.md)" in (ROOT / "data" / "README.md").read_text("utf-8")


def test_a_program_runs_from_the_root_and_imports_nothing_heavy(tmp_path):
    code = (
        "import runpy, sys; sys.argv = ['prepare.py', 'gone']\n"
        "try: runpy.run_module('data.cityscapes.prepare', run_name='__main__')\n"
        "except SystemExit as stop: print(stop.code, sorted({'torch', 'cv2', 'albumentations'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "3 []\n"
    assert done.stderr.endswith("gone: no such folder; give your copy of the data set\n")

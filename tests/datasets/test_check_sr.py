"""Faults planted in good pairs: all found in one run, and none in the good pairs themselves."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.datasets.checks import check_config, check_sr
from densekit.datasets.checks.kernels import KERNELS
from densekit.datasets.pairs import make_pair
from densekit.datasets.partners import pair_pictures
from densekit.datasets.split import split_by_name
from densekit.errors import ConfigError
from densekit.image import Picture, write_image
from densekit.resize import imresize
from tests.training_data import make_picture, sr_config, write_pictures

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def write_pair(folder, name, seed, lr_of=lambda hr: make_pair(hr, 2)[0], size=(80, 96)):
    """Writes hr/NAME and lr/NAME, of which `lr_of` makes the pixels of the second from those of the first."""
    hr = make_picture(*size, seed)
    for part, pixels in (("hr", hr), ("lr", lr_of(hr))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        if pixels is not None:
            write_image(folder / part / f"{name}.png", Picture(np.ascontiguousarray(pixels)))


def write_good(folder, count=4, **options):
    for i in range(count):
        write_pair(folder, str(i), 100 + i, **options)
    return folder


def check(folder, **options):
    return check_sr([folder / "hr"], lr=[folder / "lr"], **{"threads": 2, **options})


def kinds_of(result):
    found = defaultdict(set)
    for fault in result.faults:
        found[fault.path.name if fault.path else ""].add(fault.kind)
    return dict(found)


def reduce(hr):
    return make_pair(hr, 2)[0]


def by(kernel):
    return lambda hr: KERNELS[kernel](hr, (hr.shape[0] // 2, hr.shape[1] // 2))


def plant_all(folder):
    expected = {}
    seeds = iter(range(1000, 2000))

    def plant(kind, name, lr_of=reduce, then=None, file=None, **options):
        write_pair(folder, name, next(seeds), lr_of, **options)
        if then is not None:
            then(folder / "hr" / f"{name}.png", folder / "lr" / f"{name}.png")
        expected[file or f"{name}.png"] = kind

    plant("empty-file", "empty", then=lambda hr, lr: lr.write_bytes(b""))
    plant("not-a-picture", "text", then=lambda hr, lr: hr.write_bytes(b"404"))
    plant("truncated", "cut", then=lambda hr, lr: hr.write_bytes(hr.read_bytes()[:2000]))
    plant("no-lr", "alone", lr_of=lambda hr: None)
    plant("no-hr", "left", then=lambda hr, lr: hr.unlink())
    plant("same-stem", "twice", then=lambda hr, lr: shutil.copy(lr, lr.with_suffix(".tif")), file="twice.tif")
    plant("lr-size", "size", lr_of=lambda hr: reduce(hr)[:-1])
    plant("scale", "scale", lr_of=lambda hr: imresize(hr, 1 / 4))
    plant("turned", "turned", lr_of=lambda hr: np.rot90(reduce(hr)))
    plant("turned", "upside", lr_of=lambda hr: reduce(hr)[::-1, ::-1])
    plant("turned", "mirrored", lr_of=lambda hr: reduce(hr)[:, ::-1])
    plant("wrong-pair", "other", lr_of=lambda hr: reduce(make_picture(*hr.shape[:2], 77)))
    plant("shifted", "shifted", lr_of=lambda hr: reduce(np.roll(hr, (1, -2), (0, 1))))
    plant("other-kernel", "pil", lr_of=by("PIL bicubic"))
    plant("unknown-kernel", "sharp", lr_of=lambda hr: np.clip(1.4 * reduce(hr).astype(float) - 50, 0, 255).astype("u1"))
    plant("lossy-lr", "jpeg", file="jpeg.jpg", then=lambda hr, lr: (
        Image.open(lr).save(lr.with_suffix(".jpg"), quality=95), lr.unlink()))  # fmt: skip
    plant("duplicate", "same", lr_of=lambda hr: None, then=lambda hr, lr: (
        shutil.copy(folder / "hr" / "0.png", hr), shutil.copy(folder / "lr" / "0.png", lr)))  # fmt: skip
    plant("small", "small", size=(40, 40))
    plant("mode", "deep", then=lambda hr, lr: write_image(hr, Picture(np.array(Image.open(hr)).astype("u2") * 257)))
    ramp = (np.arange(80 * 96) % 256).reshape(80, 96).astype(np.uint8)
    plant("mode", "alpha", then=lambda hr, lr: write_image(hr, Picture(np.array(Image.open(hr)), ramp)))
    plant("mixed-grey", "grey", then=lambda hr, lr: Image.open(lr).convert("L").save(lr))
    plant("case", "case", then=lambda hr, lr: [shutil.copy(path, path.with_name("Case.png")) for path in (hr, lr)])
    (folder / "hr" / "raw.dng").write_bytes(b"II*\0")
    expected["raw.dng"] = "other-format"
    (folder / "lr" / "gone.png").symlink_to("nowhere.png")
    expected["gone.png"] = "broken-link"
    os.mkfifo(folder / "hr" / "pipe.png")
    expected["pipe.png"] = "not-a-file"
    return expected


def test_every_planted_fault_is_found_in_one_run(tmp_path):
    folder = write_good(tmp_path / "train", 8)
    expected = plant_all(folder)
    found = kinds_of(check(folder, crop_size=24))
    assert not {name: kind for name, kind in expected.items() if kind not in found.get(name, ())}
    assert len(set(expected.values())) >= 22
    assert set(found) - set(expected) <= {"", "twice.png"}


def test_good_pairs_have_no_faults(tmp_path):
    val = write_pictures(tmp_path / "val", 3, seed=900)
    for size in ((80, 96), (81, 99)):  # cut to a multiple, as the benchmarks are
        result = check(write_good(tmp_path / str(size[0]), size=size), val=[val], crop_size=24, scale=2)
        assert [str(fault) for fault in result.faults] == []
        assert (result.facts["scale"], result.facts["kernels"]) == (2, {"benchmark": 4})


def test_names_that_end_in_the_scale_pair_too(tmp_path):
    folder = write_good(tmp_path / "train")
    for path in (folder / "lr").iterdir():
        path.rename(path.with_name(f"{path.stem}x2.png"))
    assert not check(folder).faults


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_named(tmp_path, kernel):
    write_good(tmp_path, 2, lr_of=by(kernel))
    result = check(tmp_path, threads=1)
    (name,) = result.facts["kernels"]
    same = {"OpenCV area", "PIL box", "OpenCV linear"}  # at scale 2: the mean of four, but for rounding
    assert name == kernel or {name, kernel} <= same
    assert result.kinds == ({} if kernel == "benchmark" else {"other-kernel": 2})


def test_shifts_are_measured_in_pixels_of_the_larger_picture(tmp_path):
    shifts = {"a": (1, 0), "b": (0, -1), "c": (3, 5), "d": (-4, 4)}
    for seed, (name, shift) in enumerate(shifts.items()):
        write_pair(tmp_path, name, seed, lambda hr, shift=shift: reduce(np.roll(hr, shift, (0, 1))), (160, 160))
    messages = [fault.message for fault in check(tmp_path).faults]
    assert messages == [
        f"is shifted against {name}.png by {right} pixels to the right and {down} down"
        for name, (down, right) in shifts.items()
    ]


def test_sizes_that_do_not_fit_say_which_would(tmp_path):
    write_pair(tmp_path, "a", 0, lambda hr: imresize(hr, 1 / 4), (339 * 4 - 1, 128))
    (fault,) = check(tmp_path, scale=4).faults
    assert str(fault).endswith("a.png: is 32x339 but a.png is 128x1355: expected 32x338 at scale 4; "
                               "make it again from this HR picture")  # fmt: skip


def test_pictures_all_smaller_than_a_crop_are_an_error(tmp_path):
    result = check_sr([write_pictures(tmp_path / "p", 3)], scale=4, crop_size=16, threads=1)
    assert result.kinds == {"all-small": 1, "small": 3}
    assert str(result.errors[0]).startswith("no picture is 64x64, but a crop of 16 at scale 4 needs 64x64")


def test_what_validation_shares_with_training_is_an_error(tmp_path):
    train, val = write_pictures(tmp_path / "train"), write_pictures(tmp_path / "val", 2, seed=50)
    shutil.copy(train / "1.png", val / "x.png")
    (fault,) = check_sr([train, train], val=[val], threads=1).faults
    assert (fault.kind, fault.severity, fault.path) == ("leak", "error", val / "x.png")
    assert fault.message == f"the same pixels as {train / '1.png'} in train"


def test_folders_are_checked_against_each_other(tmp_path):
    with pytest.raises(ConfigError, match="found 1 folders of LR for 2 of HR"):
        check_sr([tmp_path, tmp_path], lr=[tmp_path])
    write_good(tmp_path)
    result = check_sr([tmp_path / "hr"], lr=[tmp_path / "none"], threads=1)
    assert result.kinds == {"missing-folder": 1}  # and not one fault for each picture


def test_a_config_says_where_the_data_is_and_how_large_a_crop_is(tmp_path):
    config = sr_config(write_pictures(tmp_path / "p", 3))
    assert check_config(config).kinds == {"leak": 3}
    assert check_config(config, crop_size=22).kinds == {"all-small": 1, "leak": 3, "small": 3}


def test_names_pair_as_in_training_whatever_tools_put_behind_them(tmp_path):
    folder = write_good(tmp_path / "train")
    for path in [*(folder / "hr").iterdir(), *(folder / "lr").iterdir()]:
        path.rename(path.with_name(f"img_{path.stem}_SRF_2_{path.parent.name.upper()}.png"))
    assert not check(folder).faults
    assert len(pair_pictures([folder / "hr"], [folder / "lr"], scale=2)) == 4


def test_the_low_resolution_of_a_config_is_checked_for_training_and_validation(tmp_path):
    train, val = write_good(tmp_path / "train"), write_good(tmp_path / "val", 2)
    write_pair(train, "size", 7, lambda hr: reduce(hr)[:-1])
    write_pair(val, "turned", 8, lambda hr: np.rot90(reduce(hr)))
    data = {"lr": [str(train / "lr")], "val": [str(val / "hr")], "val_lr": [str(val / "lr")]}
    found = kinds_of(check_config(sr_config(train / "hr", data=data), threads=1))
    assert found["size.png"] == {"lr-size"}
    assert found["turned.png"] == {"turned"}
    with pytest.raises(ConfigError, match="found 1 folders of LR for 2 of HR"):
        check_sr([val / "hr"], val=[val / "hr", val / "hr"], val_lr=[val / "lr"])


def test_a_share_kept_for_validation_is_looked_at_as_such(tmp_path):
    config = sr_config(write_pictures(tmp_path / "p", 5, seed=60), data={"val": [], "val_share": 0.4})
    result = check_config(config, threads=1)
    assert (result.kinds, result.facts["train"]["pictures"], result.facts["val"]["pictures"]) == ({}, 3, 2)
    train, val = split_by_name(pair_pictures([tmp_path / "p"]), 0.4)
    shutil.copy(train[0][0], val[0][0])
    assert check_config(config, threads=1).kinds == {"leak": 1}
    for path in list((tmp_path / "p").iterdir())[1:]:
        path.unlink()
    (fault,) = check_config(config, threads=1).errors
    assert str(fault).startswith("data.val_share=0.4: found 1 pictures of 1 names, but it needs two")


def test_lists_are_checked_like_folders(tmp_path):
    write_good(tmp_path)
    for part in ("hr", "lr"):
        (tmp_path / f"{part}.txt").write_text(f"{part}/0.png\n{part}/2.png\n")
    result = check_sr([tmp_path / "hr.txt"], lr=[tmp_path / "lr.txt"], threads=1)
    assert (result.kinds, result.facts["train"]["pictures"]) == ({}, 2)
    (tmp_path / "hr.txt").write_text("hr/9.png\n../hr/1.png\n")
    assert check_sr([tmp_path / "hr.txt"], threads=1).kinds == {"list": 1}


def shared(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_benchmark_kernel_of_set5_is_recognised(scale):
    result = check_sr([shared("set5") / "HR"], lr=[shared("set5") / f"LRx{scale}"], scale=scale)
    assert result.kinds == {}
    assert result.facts["kernels"] == {"benchmark": 5}


def test_set5_made_by_pil_is_named_so_whatever_is_done_with_its_borders(tmp_path):
    for path in sorted((shared("set5") / "HR").iterdir()):
        hr = Image.open(path)
        hr.resize((hr.width // 3, hr.height // 3), Image.Resampling.BICUBIC).save(tmp_path / path.name)
    result = check_sr([shared("set5") / "HR"], lr=[tmp_path], scale=3)
    names = set(result.facts["kernels"])
    assert names <= {"PIL bicubic", "PIL bicubic of the uncropped picture"}
    assert set(result.kinds) <= {"other-kernel", "mixed-kernels"}


def test_the_modes_of_matlab_are_told_apart():
    folder = shared("matlab_imresize")
    from densekit.datasets.checks.kernels import match_kernel

    hr = np.array(Image.open(folder / "baboon.png"))
    for scale in (2, 3, 4):
        match = match_kernel(hr, np.array(Image.open(folder / f"baboon_down_x{scale}_matlab.png")), scale)
        assert match.kernel == "matlab-double"
        assert match.largest <= 1

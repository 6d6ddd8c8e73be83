from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from densekit.datasets.survey import Faulty, survey_seg, survey_sr
from densekit.errors import DataError
from densekit.image import write_mask
from tests.training_data import make_masked, write_masked, write_pictures


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recolour(folder, colours):
    """Writes the masks of a folder anew, each label as its colour, or its number."""
    for path in (folder / "masks").iterdir():
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.asarray(colours, np.uint8)[ids]).save(path)


def test_folders_are_found_as_people_lay_them(tmp_path):
    write_masked(tmp_path / "cells")
    cells = survey_seg(["cells"])
    assert cells.data == {
        "train": ["cells"],
        "classes": ["class 0", "class 1", "class 2"],
        "val_share": 0.2,
    }
    assert (cells.num_classes, cells.pictures, cells.has_validation) == (3, "cells/images", True)
    assert sum(cells.shares) == pytest.approx(1)

    apart = survey_seg(["cells/images", "cells/masks"])
    assert (apart.data["train"], apart.data["masks"]) == (["cells/images"], ["cells/masks"])
    assert (apart.pictures, apart.shares) == ("cells/images", cells.shares)

    (tmp_path / "cells/images").rename(tmp_path / "cells/image")
    (tmp_path / "cells/masks").rename(tmp_path / "cells/mask")
    assert survey_seg(["cells/"]).pictures == "cells/image"

    write_masked(tmp_path / "more", seed=9)
    assert survey_seg(["cells", "more"]).train["pictures"] == 6


def test_a_folder_with_both_splits_gives_both(tmp_path):
    write_masked(tmp_path / "set/train", count=3)
    write_masked(tmp_path / "set/val", count=2, seed=7)
    found = survey_seg(["set"])
    assert (found.data["train"], found.data["val"]) == (["set/train"], ["set/val"])
    assert "val_share" not in found.data
    assert (found.train["pictures"], found.result.facts["val"]["pictures"]) == (3, 2)
    write_pictures(tmp_path / "photos/train", 3)
    write_pictures(tmp_path / "photos/valid", 1, seed=5)
    assert survey_sr(["photos"], scale=2).data == {"train": ["photos/train"], "val": ["photos/valid"]}


def test_validation_folders_are_taken_in_the_form_of_the_others(tmp_path):
    write_masked(tmp_path / "cells")
    write_masked(tmp_path / "other", seed=7)
    assert survey_seg(["cells"], val=["other"]).data["val"] == ["other"]
    apart = survey_seg(["cells/images", "cells/masks"], val=["other"])
    assert (apart.data["val"], apart.data["val_masks"]) == (["other/images"], ["other/masks"])
    write_pictures(tmp_path / "photos", 3)
    write_pictures(tmp_path / "held", 1, seed=5)
    assert survey_sr(["photos"], val=["held"], scale=2).data == {"train": ["photos"], "val": ["held"]}


def test_one_picture_trains_without_validation(tmp_path):
    write_masked(tmp_path / "one", count=1)
    found = survey_seg(["one"])
    assert not found.has_validation
    assert "val_share" not in found.data
    assert found.why["train"] == "one picture alone: nothing validates, and no best.safetensors is chosen"
    write_pictures(tmp_path / "photo", 1)
    assert not survey_sr(["photo"], scale=2).has_validation


@pytest.mark.parametrize(
    ("colours", "class_map"),
    [
        ([[0, 0, 0], [255, 0, 0], [0, 0, 255]], {"#000000", "#ff0000", "#0000ff"}),
        ([0, 127, 254], {"#000000", "#7f7f7f", "#fefefe"}),
        ([0, 100, 255], {"#000000", "#646464", "#ffffff"}),
    ],
)
def test_colours_and_grey_levels_get_a_class_map(tmp_path, colours, class_map):
    write_masked(tmp_path / "cells")
    numbers = survey_seg(["cells"])
    recolour(tmp_path / "cells", colours)
    found = survey_seg(["cells"])
    assert found.data["class_map"].keys() == class_map
    assert sorted(found.data["class_map"].values()) == [0, 1, 2]
    assert found.num_classes == 3
    assert sorted(found.shares) == pytest.approx(sorted(numbers.shares), abs=1e-5)
    assert "class_map" in found.why


def test_black_and_white_masks_are_background_and_foreground(tmp_path):
    write_masked(tmp_path / "cells", classes=2)
    numbers = survey_seg(["cells"])
    recolour(tmp_path / "cells", [0, 255])
    found = survey_seg(["cells"])
    assert found.data["class_map"] == {"#000000": 0, "#ffffff": 1}
    assert (found.num_classes, found.data["classes"]) == (2, ["background", "foreground"])
    assert found.shares == numbers.shares


def test_void_and_names_are_taken_as_given(tmp_path):
    write_masked(tmp_path / "street")
    found = survey_seg(["street"], classes=["road", "sky"], ignore_index=2)
    assert (found.data["classes"], found.data["ignore_index"], found.num_classes) == (["road", "sky"], 2, 2)
    assert found.train["void_share"] > 0
    assert "classes" not in found.why
    with pytest.raises(Faulty, match="the data is faulty, 3 times; mend it first") as caught:
        survey_seg(["street"], classes=["road", "sky"])
    assert {fault.kind for fault in caught.value.result.errors} == {"void-id"}


def test_dark_grey_pictures_are_taken_for_fluorescence(tmp_path):
    for name, factor in (("bright", 1), ("dark", 0)):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        for seed in range(3):
            picture, ids = make_masked(40, 48, seed, 2)
            grey = (20 + 200 * (ids * (np.random.default_rng(seed).random(ids.shape) < 0.3)))[..., None].repeat(3, 2)
            Image.fromarray((picture if factor else grey).astype(np.uint8)).save(folder / f"images/{seed}.png")
            write_mask(folder / f"masks/{seed}.png", ids)
    assert survey_seg(["dark"]).is_fluorescence
    assert not survey_seg(["bright"]).is_fluorescence


def test_masks_that_teach_nothing_are_refused(tmp_path):
    folder = write_masked(tmp_path / "cells")
    recolour(folder, [0, 0, 0])
    with pytest.raises(DataError, match="cells: the masks hold class 0 alone; training needs two classes or more"):
        survey_seg(["cells"])
    for place, path in enumerate(sorted((folder / "masks").iterdir())):
        write_mask(path, (np.arange(40 * 48).reshape(40, 48) // 24 % (60 + 10 * place)).astype(np.uint8))
    with pytest.raises(DataError, match="labels 0 to 79, each in no more masks than the one before, look like numbers"):
        survey_seg(["cells"])
    assert survey_seg(["cells"], classes=[f"c{i}" for i in range(80)]).num_classes == 80


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["gone"], "gone: no such folder; give one that holds pictures"),
        (["empty"], "empty: holds neither images/ and masks/ nor image/ and mask/; give the folder that does"),
        (["cells", "empty"], "empty: holds neither images/"),
    ],
)
def test_what_holds_no_images_with_masks_is_named(tmp_path, folders, message):
    (tmp_path / "empty").mkdir()
    write_masked(tmp_path / "cells")
    with pytest.raises(DataError) as caught:
        survey_seg(folders)
    assert str(caught.value).startswith(message)


def test_every_fault_is_in_the_result(tmp_path):
    folder = write_masked(tmp_path / "cells", count=4)
    (folder / "masks/0.png").unlink()
    (folder / "images/1.png").write_bytes(b"no picture")
    with pytest.raises(Faulty, match=r"faulty, 2 times; mend it first \(densekit seg check tells all, too\)") as caught:
        survey_seg(["cells"])
    assert set(caught.value.result.kinds) == {"no-mask", "not-a-picture"}
    write_pictures(tmp_path / "photos", 2)
    (tmp_path / "photos/1.png").write_bytes(b"")
    with pytest.raises(Faulty, match="faulty, once"):
        survey_sr(["photos"], scale=2)


def test_looking_at_data_loads_no_torch():
    code = "import sys, densekit.datasets.survey; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.errors import DataError
from densekit.evaluate.sets import SETS, Partners, find_set, is_part, plain_name, set_name


@pytest.mark.parametrize(
    ("stem", "plain", "factor"),
    [
        ("baby", "baby", None),
        ("baby_x2", "baby", 2),
        ("img_001x4", "img_001", 4),
        ("0801x4", "0801", 4),
        ("0801x2m", "0801", 2),
        ("baby_LRBI_x2", "baby", 2),
        ("baby_HR_x2", "baby", 2),
        ("baby_HR", "baby", None),
        ("img_001_SRF_4_LR", "img_001", 4),
        ("img_001_SRF_4_HR", "img_001", 4),
        ("x2", "x2", None),
        ("_x2", "_", 2),
        ("img_001", "img_001", None),
        ("2x4_wood", "2x4_wood", None),
    ],
)
def test_what_tools_put_behind_a_name_is_not_part_of_it(stem, plain, factor):
    assert plain_name(Path(f"{stem}.png")) == (plain, factor)


@given(st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=30))
def test_every_name_has_a_plain_one_that_begins_it(stem):
    path = Path(f"a{stem}.png")
    plain, factor = plain_name(path)
    assert plain
    assert path.stem.lower().startswith(plain)
    assert factor is None or 0 <= factor <= 9


def test_partners_are_found_by_equal_names_first_then_by_plain_ones(tmp_path, write_pictures):
    highs = write_pictures(tmp_path / "hr", {"a.png": (4, 4), "b_x2.png": (4, 4), "sub/c.png": (4, 4)})
    lows = write_pictures(
        tmp_path / "lr", {"a_x2.png": (2, 2), "a_x4.png": (1, 1), "b_x2.png": (2, 2), "B.jpg": (2, 2)}
    )
    write_pictures(lows, {"sub/c_LR.png": (2, 2)})
    partners = Partners(lows, scale=2)
    found = [partners.find(highs / name, highs) for name in ("a.png", "b_x2.png", "sub/c.png")]
    assert found == [lows / "a_x2.png", lows / "b_x2.png", lows / "sub/c_LR.png"]
    with pytest.raises(DataError, match=r"both a_x2\.png and a_x4\.png in .*lr could belong to it; remove one"):
        Partners(lows).find(highs / "a.png", highs)
    with pytest.raises(DataError, match=r"no picture of that name in .*lr; add one, or remove this"):
        partners.find(highs / "d.png", highs)
    with pytest.raises(DataError, match="no such folder"):
        Partners(tmp_path / "gone")


def test_masks_may_end_in_what_predict_puts_behind_a_name(tmp_path, write_masks):
    masks = write_masks(tmp_path / "m", {"photo_mask.png": (2, 2), "x2.png": (2, 2)})
    partners = Partners(masks, masks=True)
    assert partners.find(Path("p/photo.jpg"), Path("p")) == masks / "photo_mask.png"
    assert partners.find(Path("p/x2.jpg"), Path("p")) == masks / "x2.png"


def test_test_sets_have_names_in_any_case_below_the_root(tmp_path, write_pictures):
    for known in SETS:
        folder = write_pictures(tmp_path / "data" / known.key / "images", {"a.png": (4, 4)})
        for word in (known.name, known.name.upper(), known.key, known.key.replace("_", "-"), *known.others):
            assert find_set(word, tmp_path) == (known.name, folder)
    assert find_set(tmp_path / "data/set5/images") == ("Set5", tmp_path / "data/set5/images")
    assert (is_part("Set5", 4), is_part("Set5", 5), is_part("mine", 4)) == (5, None, None)


def test_a_folder_of_the_name_of_a_set_goes_first(tmp_path, write_pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data/set14/images", {"a.png": (4, 4)})
    write_pictures(tmp_path / "set14", {"a.png": (4, 4)})
    assert find_set("set14") == ("Set14", Path("set14"))


def test_folders_have_telling_names(tmp_path):
    for folder, name in (("nuclei/val/images", "nuclei/val"), ("camvid/test", "camvid/test"), ("photos", "photos")):
        (tmp_path / folder).mkdir(parents=True)
        assert set_name(tmp_path / folder) == name


def test_a_set_that_is_not_there_says_how_to_prepare_it(tmp_path):
    with pytest.raises(DataError, match=r"^Urban100: no pictures in .*data/urban100/images; put its high-resolution"):
        find_set("urban100", tmp_path)
    (tmp_path / "data/set5").mkdir(parents=True)
    (tmp_path / "data/set5/prepare.py").touch()
    with pytest.raises(DataError, match=r"^Set5: no pictures .*: python -m data\.set5\.prepare FOLDER"):
        find_set("SET5", tmp_path)
    with pytest.raises(DataError, match=r"^Set15: neither a folder nor a test set \(Set5, .*; did you mean 'Set5'\?"):
        find_set("Set15", tmp_path)
    with pytest.raises(DataError, match=r"^gone/there: no such folder; give one that holds pictures"):
        find_set("gone/there", tmp_path)

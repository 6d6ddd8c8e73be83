from __future__ import annotations

from pathlib import Path

import pytest

from densekit.errors import DataError
from densekit.evaluate.sets import SETS, find_set, is_part, set_name


def test_test_sets_have_names_in_any_case_below_the_root(tmp_path, write_pictures):
    for known in SETS:
        folder = write_pictures(known.below(tmp_path), {"a.png": (4, 4)})
        assert set_name(folder) == known.name
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


@pytest.mark.parametrize("known", SETS, ids=lambda known: known.name)
def test_every_set_has_a_program_that_prepares_the_folder_it_is_looked_for_in(known):
    root = Path(__file__).parents[2]
    program = known.below(root).relative_to(root / "data").parts[0]
    assert (root / "data" / program / "prepare.py").is_file()
    assert f"data/{program}" in (root / "data" / program / "README.md").read_text("utf-8")

"""Lists of pictures: what they name, and what they must not."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.datasets.lists import MAX_BYTES, is_list, read_list
from densekit.datasets.pictures import list_pictures, rooted_pictures
from densekit.errors import DataError
from tests.training_data import write_pictures


@pytest.fixture
def folder(tmp_path):
    """tmp_path/data with pictures, beside tmp_path/private with some that no list in data may name."""
    write_pictures(tmp_path / "data" / "a")
    write_pictures(tmp_path / "data" / "b c")
    write_pictures(tmp_path / "private")
    return tmp_path / "data"


def write_list(folder, *lines):
    path = folder / "some.txt"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else os.fsencode(line) for line in lines))
    return path


def test_a_list_names_its_pictures_in_its_order_and_as_often_as_it_does(folder):
    path = write_list(
        folder, "\ufeff# the good ones", "a/2.png", "", "  b c/0.png \r", "./a/1.png", "a/2.png", "#a/0.png"
    )
    expected = [folder / name for name in ("a/2.png", "b c/0.png", "a/1.png", "a/2.png")]
    assert read_list(path) == list_pictures([str(path)]) == expected
    assert list_pictures([folder / "a", path]) == [folder / "a" / f"{i}.png" for i in range(3)] + expected


def test_names_start_from_the_deepest_folder_that_holds_all_pictures_of_a_list(folder):
    assert rooted_pictures(write_list(folder, "a/0.png", "b c/0.png"))[0] == folder
    assert rooted_pictures(write_list(folder, "a/0.png", "a/1.png"))[0] == folder / "a"
    assert rooted_pictures(write_list(folder, "a/0.png"))[0] == folder / "a"
    assert rooted_pictures(folder)[0] == folder


def test_all_faults_of_a_list_are_one_line_with_their_numbers(folder):
    lines = ["a/0.png", "# a comment", "a/7.png", "a", "b c/1.jpg", "a/1.txt", "a/2.png"]
    with pytest.raises(DataError) as error:
        list_pictures([write_list(folder, *lines)])
    assert str(error.value) == (
        f"{folder}/some.txt: 4 of 6 paths cannot be used: line 3: 'a/7.png' is no file; line 4: 'a' has none of the "
        "suffixes .png .jpg .jpeg .tif .tiff .webp .bmp; line 5: 'b c/1.jpg' is no file; and 1 more"
    )


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("../private/0.png", r"leads out of the folder of the list by \.\.; put the list above its pictures"),
        ("a/../../private/0.png", "leads out of the folder of the list by"),
        ("a/../a/0.png", "leads out of the folder of the list by"),
        ("{root}/private/0.png", "is an absolute path; write it relative to the folder of the list"),
        ("{root}/data/a/0.png", "is an absolute path"),
        ("file.png", "is a link out of the folder of the list; put the list where its pictures are"),
        ("folder/0.png", "is a link out of the folder of the list"),
        ("loop.png", "is no file"),
        ("a/0.png\0", "is no path"),
        ("a/\x1b[2J.png", r"'a/\\x1b\[2J\.png' is no file"),
        (b"a/\xff.png", r"'a/\\udcff\.png' is no file"),
        ("http://host/0.png", "is no file"),
    ],
)
def test_no_entry_leads_out_of_the_folder_of_its_list(folder, entry, fault):
    (folder / "file.png").symlink_to(folder.parent / "private" / "0.png")
    (folder / "folder").symlink_to(folder.parent / "private")
    (folder / "loop.png").symlink_to("loop.png")
    entry = entry if isinstance(entry, bytes) else entry.format(root=folder.parent)
    with pytest.raises(DataError, match=rf"some\.txt: 1 of 1 paths cannot be used: line 1: .*{fault}") as error:
        read_list(write_list(folder, entry))
    assert str(error.value).isprintable()


def test_links_inside_the_folder_are_followed_and_so_is_one_to_the_folder_itself(folder):
    (folder / "inside.png").symlink_to("a/0.png")
    write_list(folder, "inside.png")
    (folder.parent / "link").symlink_to(folder)
    assert read_list(folder.parent / "link" / "some.txt") == [folder.parent / "link" / "inside.png"]


def test_what_is_no_list_is_told(folder):
    (folder / "dir.txt").mkdir()
    assert (is_list("x.TXT"), is_list(folder / "dir.txt"), is_list("x.png")) == (True, False, False)
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read \(No such file or directory\); expected a list"):
        list_pictures([folder / "gone.txt"])
    with pytest.raises(DataError, match=r"some\.txt: an empty list; write one path a line, relative to its folder"):
        list_pictures([write_list(folder, "# nothing", "")])
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"huge\.txt: larger than 64 MiB; expected a list with one path a line"):
        list_pictures([folder / "huge.txt"])


@given(st.binary(max_size=200))
def test_any_bytes_are_paths_or_one_line_that_says_why_not(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "some.txt").write_bytes(data)
    with pytest.raises(DataError, match=r"some\.txt: ") as error:
        read_list(folder / "some.txt")
    assert str(error.value).isprintable()

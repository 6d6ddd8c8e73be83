"""The packed cache: the same bits as decoding, whoever makes it, whatever happened to it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from densekit.datasets import packed
from densekit.datasets.draws import Draws
from densekit.datasets.packed import load_all
from densekit.datasets.pairs import Pairs
from densekit.datasets.partners import pair_pictures
from densekit.datasets.pictures import read_rgb
from densekit.errors import DataError
from densekit.image import Picture, write_image
from tests.training_data import make_picture, write_pictures

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "pictures", 4)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "some" / "cache"


def read_bytes(source):
    """One record a line of the first file: its bytes, and the length of all files."""
    total = sum(len(path.read_bytes()) for path in source)
    lines = source[0].read_bytes().splitlines()
    return [(np.frombuffer(line, np.uint8), np.array([[total % 256]], np.uint8)) for line in lines]


def load(folder, cache, **options):
    return Pairs(pair_pictures([folder]), 2, 8, 3, cache=cache and str(cache), **options)


def names(cache):
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def same(one, other):
    assert len(one) == len(other)
    for records, others in zip(one, other, strict=True):
        assert [[(array.shape, array.tobytes()) for array in record] for record in records] == [
            [(array.shape, array.tobytes()) for array in record] for record in others
        ]
    return True


def is_mapped(array):
    """Whether the memory of an array is that of a file."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return line.endswith(".pixels")
    return False


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.lists(st.integers(0, 5), max_size=8))
def test_what_is_packed_is_what_is_read_whatever_its_number_and_sizes(tmp_path_factory, contents, order):
    folder = tmp_path_factory.mktemp("any")
    sources = []
    for number, content in enumerate(contents):
        (folder / f"{number}").write_bytes(content)
        sources.append((folder / f"{number}",) * (1 + number % 2))
    sources = [sources[index % len(sources)] for index in order]
    expected = load_all("lines", sources, read_bytes, None)
    assert expected == [] if not sources else [len(r) for r in expected] == [len(read_bytes(s)) for s in sources]
    same(load_all("lines", sources, read_bytes, str(folder / "cache")), expected)  # packed
    same(load_all("lines", sources, read_bytes, str(folder / "cache")), expected)  # found again


@pytest.mark.parametrize("options", [{}, {"shrink": (1, 0.6)}, {"hr_only": True}])
def test_items_from_a_cache_are_those_from_memory(folder, cache, options):
    memory = load(folder, None, **options)
    for _ in range(2):
        data = load(folder, cache, **options)
        assert len(data) == len(memory)
        assert all(is_mapped(array) for record in data.pairs for array in record)
        for draw in range(40):
            for one, other in zip(data[draw, draw % len(data)], memory[draw, draw % len(data)], strict=True):
                assert torch.equal(one, other)


def test_a_folder_named_twice_is_packed_once(folder, cache):
    sources = pair_pictures([folder, folder])
    assert len(Pairs(sources, 2, 8, 0, cache=str(cache))) == 8
    (pixels,) = cache.glob("*.pixels")
    assert pixels.stat().st_size == 4 * (40 * 48 + 20 * 24) * 3 + 1


def test_what_is_mapped_cannot_be_written_to_and_crops_are_copies(folder, cache):
    data = load(folder, cache)
    with pytest.raises(ValueError, match="read-only"):
        data.pairs[0][0][0, 0, 0] = 1
    before = data.pairs[0][1].copy()
    data[0, 0][1].fill_(7)
    assert (data.pairs[0][1] == before).all()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("workers", "method"), [(1, "fork"), (2, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow)]
)
def test_workers_hand_out_the_same_items(folder, cache, workers, method):
    memory, data = load(folder, None), load(folder, cache)
    loader = DataLoader(
        data,
        2,
        sampler=Draws(len(data), 3),
        num_workers=workers,
        multiprocessing_context=method,
        generator=torch.Generator(),
    )
    expected = islice(DataLoader(memory, 2, sampler=Draws(len(data), 3)), 6)
    for batch, other in zip(islice(loader, 6), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_another_process_gets_the_place_of_the_pixels_and_not_the_pixels(tmp_path, cache):
    write_image(write_pictures(tmp_path / "p", 0) / "large.png", Picture(make_picture(600, 600, 0)))
    data = load(tmp_path / "p", cache)
    sent = pickle.dumps(data)
    assert len(sent) < 5000 < data.pairs[0][1].nbytes
    again = pickle.loads(sent)
    assert is_mapped(again.pairs[0][1])
    assert again.pairs[0][1].tobytes() == data.pairs[0][1].tobytes()
    crop = data.pairs[0][1][10:20, 5:9]
    assert (pickle.loads(pickle.dumps(crop)) == crop).all()  # what is but a part of it goes as itself
    assert (pickle.loads(pickle.dumps(data.pairs[0][1] + 1)) == data.pairs[0][1] + 1).all()


def test_pixels_that_are_gone_or_changed_are_refused_in_another_process(folder, cache):
    data = load(folder, cache)
    sent = pickle.dumps(data.pairs)
    (pixels,) = cache.glob("*.pixels")
    del data
    content = pixels.read_bytes()
    pixels.unlink()
    with pytest.raises(DataError, match=r"\.pixels: cannot be opened again \(No such file or directory\); start again"):
        pickle.loads(sent)
    pixels.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"\.pixels: has changed since it was opened; start again"):
        pickle.loads(sent)


def touch_later(path):
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def test_a_changed_file_is_packed_anew_and_the_old_pack_goes(folder, cache, capsys):
    load(folder, cache)
    before = names(cache)
    assert len(before) == 2
    assert capsys.readouterr().err == f"packing 4 pictures into {cache}, once\n"
    load(folder, cache)
    assert (names(cache), capsys.readouterr().err) == (before, "")
    write_image(folder / "1.png", Picture(make_picture(44, 60, 9)))
    data = load(folder, cache)
    assert data.pairs[1][1].tobytes() == make_picture(44, 60, 9).tobytes()
    between = names(cache)
    assert len(between) == 2
    assert not set(between) & set(before)
    touch_later(folder / "0.png")
    load(folder, cache)
    assert not set(names(cache)) & set(between)


def test_packs_of_other_pictures_and_other_rules_stand_side_by_side(folder, cache, capsys):
    load(folder, cache)
    load(folder, cache, shrink=(0.7,))
    load(folder, cache, hr_only=True)
    Pairs(pair_pictures([folder]), 4, 8, 0, cache=str(cache))
    write_pictures(folder, 5)
    load(folder, cache)
    assert len(names(cache)) == 10
    assert capsys.readouterr().err.count("packing") == 5


def test_paths_are_taken_absolutely(folder, cache, monkeypatch, capsys):
    load(folder, cache)
    monkeypatch.chdir(folder.parent)
    same([load("pictures", Path("some/cache")).pairs], [load(folder, cache).pairs])
    assert capsys.readouterr().err.count("packing") == 1


DAMAGE = {
    "short pixels": (".pixels", lambda data: data[:-1], r"its pixels have \d+ bytes, expected \d+"),
    "long pixels": (".pixels", lambda data: data + b"\0", r"its pixels have \d+ bytes, expected \d+"),
    "no pixels": (".pixels", None, r"its pixels cannot be read \(No such file or directory\)"),
    "empty index": (".json", lambda data: b"", "is damaged"),
    "torn index": (".json", lambda data: data[: len(data) // 2], "is damaged"),
    "another index": (".json", lambda data: b'{"places": []}', "is damaged"),
    "no object": (".json", lambda data: b"[1]", "is damaged"),
    "another number": (".json", lambda data: data.replace(b"[40, 48, 3]", b"[41, 48, 3]", 1), "is damaged"),
    "no text": (".json", lambda data: b"\xff" + data, "is damaged"),
}


def test_an_index_that_leads_out_of_its_pixels_is_damage_too(folder, cache, capsys):
    load(folder, cache)
    (index,) = cache.glob("*.json")
    good = json.loads(index.read_text())
    for place in ([10**9, [40, 48, 3]], [0, [40, 48, 3000]], [-1, [1]], [0, ["a"]], [0, 5], [0], None):
        entries = {"size": good["size"], "places": [*good["places"][1:], *([[[place]]] if place else [])]}
        index.write_text(json.dumps({"sha256": packed._checksum(entries), **entries}))
        same([load(folder, cache).pairs], [load(folder, None).pairs])
        assert ".json: is damaged; packing the pictures again\n" in capsys.readouterr().err
        assert json.loads(index.read_text()) == good


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_pack_is_made_anew_with_one_line(folder, cache, capsys, kind):
    memory = load(folder, None)
    load(folder, cache)
    before = {name: (cache / name).read_bytes() for name in names(cache)}
    suffix, change, fault = DAMAGE[kind]
    (path,) = cache.glob(f"*{suffix}")
    if change:
        assert change(path.read_bytes()) != path.read_bytes()
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    capsys.readouterr()
    same([load(folder, cache).pairs], [memory.pairs])
    warning, packing = capsys.readouterr().err.splitlines()
    assert packing == f"packing 4 pictures into {cache}, once"
    assert re.fullmatch(rf"warning: {cache}/[0-9a-f-]+\.json: {fault}; packing the pictures again", warning)
    assert {name: (cache / name).read_bytes() for name in names(cache)} == before


def test_a_missing_index_is_no_damage(folder, cache, capsys):
    load(folder, cache)
    next(cache.glob("*.json")).unlink()
    capsys.readouterr()
    load(folder, cache)
    assert capsys.readouterr().err == f"packing 4 pictures into {cache}, once\n"


def test_the_index_is_small_and_says_where_each_array_lies(folder, cache):
    load(folder, cache)
    entries = json.loads(next(cache.glob("*.json")).read_text())
    places = entries["places"]
    assert places[0] == [[[0, [20, 24, 3]], [1440, [40, 48, 3]]]]
    assert len(places) == 4
    assert entries["size"] == 4 * 7200 + 1


CHILD = """
import sys
from pathlib import Path
from densekit.datasets import packed
from densekit.datasets.pictures import list_pictures, read_rgb
folder, cache, *rest = sys.argv[1:]
sources = [(path,) for path in list_pictures([folder])]
def load(sources=sources):
    records = packed.load_all("pictures", sources, lambda source: [(read_rgb(source[0]),)], cache or None)
    return [array for ((array,),) in records]
"""


def start(code, *arguments):
    """Starts a process of its own that has `load`, `sources`, `cache` and `rest`, and no torch."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_start_at_once_pack_once_and_see_the_same(folder, cache):
    code = """
        import hashlib, time
        time.sleep(max(0, float(rest[0]) - time.time()))
        print(hashlib.sha256(b"".join(array.tobytes() for array in load())).hexdigest())
    """
    children = [start(code, folder, cache, time.time() + 1) for _ in range(3)]
    outputs = [child.communicate() for child in children]
    assert [child.returncode for child in children] == 3 * [0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert "".join(err for _, err in outputs) == f"packing 4 pictures into {cache}, once\n"
    assert len(names(cache)) == 2


def test_a_killed_build_leaves_nothing_that_is_used_and_is_cleaned_up(folder, cache):
    code = """
        import os, signal
        whole = packed._read_each
        def die(sources, read):
            for number, records in enumerate(whole(sources, read)):
                if number == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield records
        packed._read_each = die
        load()
    """
    child = start(code, folder, cache)
    child.communicate()
    assert child.returncode == -9
    (left,) = names(cache)
    assert ".pixels.tmp" in left
    (cache / ".other.tmp1").touch()  # not ours
    same([load(folder, cache).pairs], [load(folder, None).pairs])
    assert len(names(cache)) == 3
    assert left not in names(cache)


def test_a_disk_that_takes_no_more_is_one_line_and_nothing_is_left(folder, cache):
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        load()
    """
    error = start(code, folder, cache).communicate()[1].splitlines()[-1]
    assert error == (
        f"densekit.errors.DataError: {cache}: cannot be written (File too large); free some space there, or choose "
        "another data.cache"
    )
    assert names(cache) == []


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "fsync"), (Path, "replace"), (packed, "atomic_write"), (packed, "FileLock")]
)
def test_wherever_the_disk_is_full_it_is_one_line_and_nothing_is_used(folder, cache, monkeypatch, owner, name):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = (
        rf"{cache}: cannot be written \(No space left on device\); free some space there, or choose another data\.c"
    )
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        with pytest.raises(DataError, match=message):
            load(folder, cache)
    assert names(cache) == []
    same([load(folder, cache).pairs], [load(folder, None).pairs])


def test_a_folder_that_cannot_be_made_is_one_line(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/cache: cannot be written \(Not a directory\)"):
        load(folder, tmp_path / "file" / "cache")


def test_a_fault_while_packing_leaves_nothing_and_is_the_first_in_order(folder, cache):
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "3.png").write_bytes(b"no picture")
    for place in (cache, None):
        with pytest.raises(DataError, match=r"1\.png"):
            load(folder, place)
    assert names(cache) == []


def test_a_file_that_is_gone_is_one_line(folder, cache):
    sources = pair_pictures([folder])
    (folder / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png: No such file or directory; expected a file that can be read"):
        Pairs(sources, 2, 8, 0, cache=str(cache))


def test_a_whole_pack_needs_no_right_to_write(folder, cache, monkeypatch):
    expected = load(folder, cache)

    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(packed, "FileLock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    same([load(folder, cache).pairs], [expected.pairs])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_memory_of_its_own_does_not_grow_with_the_data(tmp_path, cache):
    """31 MiB of pixels in a cache cost a process less than a twentieth of that; in memory they cost all of it."""
    folder, rng = write_pictures(tmp_path / "p", 0), np.random.default_rng(0)
    for number in range(12):
        write_image(folder / f"{number}.bmp", Picture(rng.integers(0, 256, (900, 1000, 3), np.uint8)))
    code = """
        def anonymous():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024
        load(sources[:1])  # what reading needs by itself
        before = anonymous()
        arrays = load()
        total = sum(int(array.sum()) for array in arrays)
        print(anonymous() - before, sum(array.nbytes for array in arrays), total)
    """
    growths, sums = [], set()
    for place in ("", cache, cache):
        out, err = start(code, folder, place).communicate()
        assert out, err
        growth, size, total = map(int, out.split())
        growths.append(growth / size)
        sums.add((size, total))
    assert sums == {(12 * 900 * 1000 * 3, total)}
    memory, packing, packed_already = growths
    assert memory > 0.9
    assert packing < 0.5  # some pictures are decoded ahead
    assert packed_already < 0.05


@pytest.mark.fault
def test_thirty_kills_at_random_points_of_a_build_leave_nothing_that_is_used(tmp_path, cache):
    """Each child packs pictures that have just changed, and is killed somewhere between its start and its end."""
    folder = write_pictures(tmp_path / "p", 6, height=300, width=300)
    rng = np.random.default_rng(0)
    sources = pair_pictures([folder])
    killed = 0
    for number in range(30):
        write_image(folder / "3.png", Picture(make_picture(300, 300, 100 + number)))
        child = start("print(0, flush=True)\nload()", folder, cache)
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.06))
        child.kill()
        child.communicate()
        killed += child.returncode == -9
        same(
            load_all("pictures", sources, lambda source: [(read_rgb(source[0]),)], str(cache)),
            load_all("pictures", sources, lambda source: [(read_rgb(source[0]),)], None),
        )
        assert len(names(cache)) == 2
    assert killed >= 10

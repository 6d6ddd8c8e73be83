from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from densekit.cli import batch, progress
from densekit.cli.batch import Done, run_batch, writing
from densekit.cli.plan import Ending, Input, Job, find_inputs, plan
from densekit.errors import CheckpointError, ConfigError, DataError, DeviceError, ImageError, Interrupted
from densekit.image import Picture

X4 = [Ending("_x4")]
MASK = [Ending("_mask", ".png"), Ending("_overlay", ".png")]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def outputs(words, out=None, endings=X4, *, overwrite=False):
    planned = plan(find_inputs(words), out, endings, overwrite=overwrite)
    return [[str(path) for path in job.outputs] for job in planned.jobs]


def refusal(words, out=None, endings=X4, *, overwrite=False):
    with pytest.raises(ConfigError) as caught:
        outputs(words, out, endings, overwrite=overwrite)
    return str(caught.value).splitlines()


def test_a_folder_stands_for_the_pictures_below_it_and_its_tree_is_kept():
    touch("p/b.PNG", "p/sub/deep/a.jpg", "p/notes.txt", "p/.hidden/c.png", "p/.d.png")
    assert outputs(["p"]) == [["p/b_x4.PNG"], ["p/sub/deep/a_x4.jpg"]]
    assert outputs(["p"], "out") == [["out/b_x4.PNG"], ["out/sub/deep/a_x4.jpg"]]


def test_a_pattern_keeps_the_tree_below_its_fixed_part():
    touch("p/1/a.jpg", "p/2/a.jpg", "p/3.jpg")
    assert outputs(["p/*/a.jpg"], "out") == [["out/1/a_x4.jpg"], ["out/2/a_x4.jpg"]]
    assert outputs(["p/**"], "out") == [["out/1/a_x4.jpg"], ["out/2/a_x4.jpg"], ["out/3_x4.jpg"]]
    assert outputs([str(Path("p").absolute() / "[3-4].jpg")], "out") == [["out/3_x4.jpg"]]


def test_a_file_named_like_a_pattern_is_a_file():
    touch("a[1].png", "a1.png")
    assert find_inputs(["a[1].png"]) == [Input(Path("a[1].png"), Path("a[1].png"))]


def test_an_input_named_twice_is_read_once():
    touch("p/a.png", "p/b.png")
    assert [str(given.path) for given in find_inputs(["p/b.png", "p", "./p/a.png", "p/*.png"])] == [
        "p/b.png",
        "p/a.png",
    ]


def test_a_name_that_matches_nothing_is_left_to_the_reader():
    assert [given.path for given in find_inputs(["gone.png", "gone*.png"])] == [Path("gone.png"), Path("gone*.png")]


@pytest.mark.parametrize("word", ["empty", "emp*"])
def test_a_folder_without_pictures_is_refused(word):
    touch("empty/notes.txt")
    with pytest.raises(DataError, match=r"^emp.*: no pictures .*\.png \.jpg"):
        find_inputs([word])


def test_an_empty_name_is_not_the_folder_one_stands_in():
    touch("a.png")
    with pytest.raises(ConfigError, match="an empty INPUT"):
        find_inputs([""])


def test_a_name_too_long_for_the_system_is_left_to_the_reader():
    assert len(find_inputs(["x" * 5000])) == 1


def test_an_output_keeps_the_suffix_if_we_can_write_it():
    touch("a.tif", "b.gif", "c")
    assert outputs(["a.tif", "b.gif", "c"]) == [["a_x4.tif"], ["b_x4.png"], ["c_x4.png"]]
    assert outputs(["a.tif"], None, MASK) == [["a_mask.png", "a_overlay.png"]]


def test_out_names_the_result_of_one_input():
    touch("a.tif")
    assert outputs(["a.tif"], "new/b.jpg") == [["new/b.jpg"]]
    assert outputs(["a.tif"], "new/b.png", MASK) == [["new/b.png", "new/b_overlay.png"]]
    assert outputs(["a.tif"], "new.jpg/") == [["new.jpg/a_x4.tif"]]
    touch("v1.2/x")
    assert outputs(["a.tif"], "v1.2") == [["v1.2/a_x4.tif"]]


def test_out_must_be_a_folder_for_several_inputs_and_a_picture_for_one():
    touch("a.png", "b.png")
    assert refusal(["a.png", "b.png"], "c.png") == ["-o c.png names one file, but there are 2 inputs; give a folder"]
    [gif] = refusal(["a.png"], "c.gif")
    assert gif.startswith("-o c.gif: the result cannot have the suffix .gif; expected .png .jpg")
    assert gif.endswith("for a folder write c.gif/")
    assert refusal(["a.png"], "c.jpg", MASK) == [
        "-o c.jpg: the result cannot have the suffix .jpg; expected .png; for a folder write c.jpg/"
    ]


def test_two_inputs_of_one_output_are_refused():
    touch("p/a.jpg", "p/a.png", "q/a.jpg")
    assert refusal(["p"], "out", MASK[:1]) == [
        "p/a.jpg and p/a.png would both become out/a_mask.png; use separate folders or -o per file"
    ]
    assert refusal(["p/a.jpg", "q/a.jpg"], "out", overwrite=True) == [
        "p/a.jpg and q/a.jpg would both become out/a_x4.jpg; use separate folders or -o per file"
    ]


def test_an_input_is_never_overwritten():
    touch("a.png", "a_x4.png")
    wrong = "a_x4.png is an input and would be overwritten; choose another -o"
    assert refusal(["a.png", "a_x4.png"], overwrite=True) == [wrong]
    Path("link.png").symlink_to("a.png")
    assert refusal(["a.png"], "link.png", overwrite=True) == [
        "link.png is an input and would be overwritten; choose another -o"
    ]


def test_outputs_that_exist_need_overwrite_and_are_listed_up_to_five():
    touch(*(f"p/{i}.png" for i in range(7)), *(f"out/{i}_x4.png" for i in range(7)))
    assert len(outputs(["p"], "out", overwrite=True)) == 7
    lines = refusal(["p"], "out")
    assert lines[0] == "out/0_x4.png already exists; add --overwrite or choose another -o"
    assert lines[5:] == ["... and 2 more"]
    Path("out/0_x4.png").unlink()
    Path("out/0_x4.png").mkdir()
    assert refusal(["p/0.png"], "out", overwrite=True) == ["out/0_x4.png is a folder; choose another -o"]


def test_a_folder_that_cannot_be_made_or_written_is_refused_before_any_work():
    touch("a.png", "file")
    assert refusal(["a.png"], "file/out") == ["file is not a folder; choose another -o"]
    assert not Path("out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into every folder")
def test_a_read_only_folder_is_refused_before_any_work():
    touch("a.png")
    Path("out").mkdir(mode=0o500)
    assert refusal(["a.png"], "out/new") == ["out: this folder cannot be written; choose another -o"]


def deep(dtype="uint8", *, alpha=False):
    pixels = np.full((4, 4, 3), 7, dtype)
    return Picture(pixels, pixels[..., 0] if alpha else None)


def test_a_result_that_its_format_cannot_hold_takes_another_suffix():
    touch("a.bmp", "b.jpg", "b_x4.tif")
    planned = plan(find_inputs(["a.bmp", "b.jpg"]), None, X4, overwrite=False)
    a, b = planned.jobs
    assert planned.settle(a, deep()) == Path("a_x4.bmp")
    assert planned.settle(a, deep(alpha=True)) == Path("a_x4.png")
    assert planned.settle(b, deep("uint16")) == Path("b_x4.png")
    with pytest.raises(ConfigError, match=r"b_x4\.tif already exists; add --overwrite"):
        planned.settle(b, deep("float32"))


def test_the_other_suffix_does_not_take_what_belongs_to_another_input():
    touch("a.bmp", "a.png", "c.bmp", "c_x4.png")
    planned = plan(find_inputs(["a.bmp", "a.png", "c.bmp", "c_x4.png"]), None, X4, overwrite=True)
    with pytest.raises(ConfigError, match=r"a\.png and a\.bmp would both become a_x4\.png"):
        planned.settle(planned.jobs[0], deep(alpha=True))
    with pytest.raises(ConfigError, match=r"c_x4\.png is an input and would be overwritten"):
        planned.settle(planned.jobs[2], deep(alpha=True))


def test_a_name_that_was_given_keeps_its_suffix_or_fails():
    touch("a.png")
    planned = plan(find_inputs(["a.png"]), "b.jpg", X4, overwrite=False)
    with pytest.raises(ImageError) as caught:
        planned.settle(planned.jobs[0], deep("uint16", alpha=True))
    assert str(caught.value) == "a.png: its uint16 pixels with alpha do not fit into .jpg; use -o b.png"


def jobs(*names):
    return [Job(Path(name), (Path(f"out/{name}"),)) for name in names]


def work_of(results):
    """Work that gives or raises what a table holds for the file."""

    def work(job, on_tile):
        result = results.get(job.source.name)
        if result:
            raise result
        on_tile(1, 2)
        on_tile(2, 2)
        return Done(list(job.outputs), "2x2 -> 4x4  whole  0.1 s", {"scale": 2}, ["the profile: dropped"])

    return work


def run(results, names="abc", **options):
    return run_batch(jobs(*names), work_of(results), **{"as_json": False, "debug": False, **options})


def test_results_are_on_stdout_and_everything_else_is_on_stderr(capfd):
    assert run({"b": ImageError("b: not a readable image (truncated); copy it again")}) == 1
    out, err = capfd.readouterr()
    assert out.splitlines() == ["out/a", "out/c"]
    assert err.splitlines() == [
        "warning: a: the profile: dropped",
        "a  2x2 -> 4x4  whole  0.1 s",
        "error: b: not a readable image (truncated); copy it again",
        "warning: c: the profile: dropped",
        "c  2x2 -> 4x4  whole  0.1 s",
        "2 done, 1 failed",
    ]


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ({}, 0),
        ({"a": DeviceError("too large")}, 1),
        ({"a": DeviceError("too large"), "b": DeviceError("too large"), "c": DeviceError("too large")}, 4),
        ({"a": MemoryError(), "b": MemoryError(), "c": DeviceError("too large")}, 4),
        ({"a": ImageError("x"), "b": ImageError("x"), "c": ImageError("x")}, 3),
        ({"a": ImageError("x"), "b": ImageError("x"), "c": DeviceError("x")}, 1),
        ({"a": CheckpointError("x"), "b": CheckpointError("x"), "c": CheckpointError("x")}, 5),
        ({"a": RuntimeError("x"), "b": RuntimeError("x"), "c": RuntimeError("x")}, 1),
        ({"a": batch.Unwritten("x"), "b": batch.Unwritten("x"), "c": batch.Unwritten("x")}, 1),
    ],
)
def test_the_code_says_whether_anything_was_done_and_else_what_all_failed_by(results, code):
    assert run(results) == code


def test_a_failure_names_its_file_once_and_an_unexpected_one_is_no_end(capfd):
    assert run({"a": DeviceError("too large"), "b": KeyError("x\ny")}) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert lines == ["error: a: too large", "error: b: unexpected KeyError: 'x\\ny'; run again with --debug"]


def test_debug_shows_the_traceback_of_a_failure(capfd):
    run({"a": DeviceError("too large")}, debug=True)
    assert "Traceback" in capfd.readouterr().err


def test_json_is_one_object_for_each_input(capfd):
    run({"b": ImageError("b: damaged")}, as_json=True)
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert records[0] == {"input": "a", "output": "out/a", "ok": True, "scale": 2, "warnings": ["the profile: dropped"]}
    assert records[1] == {"input": "b", "ok": False, "error": "b: damaged", "kind": "ImageError"}


def test_a_full_disk_stops_the_batch(capfd):
    assert run({"b": batch.DiskFull("out/b: cannot be written (No space left on device)")}, "abcd") == 1
    assert capfd.readouterr().err.splitlines()[-1] == "1 done, 1 failed, 2 not started"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EACCES])
def test_what_the_disk_refuses_is_told_apart(number):
    kind = batch.Unwritten if number == errno.EACCES else batch.DiskFull

    def refuse():
        with writing(Path("out/deep/a.png")):
            assert Path("out/deep").is_dir()
            raise ImageError("out/a.png: cannot be written") from OSError(number, os.strerror(number))

    with pytest.raises(batch.Unwritten) as caught:
        refuse()
    assert type(caught.value) is kind


def test_a_folder_that_cannot_be_made_is_a_failure_to_write():
    touch("file")
    with (
        pytest.raises(batch.Unwritten, match=r"^file: File exists|^file/deep: Not a directory"),
        writing(Path("file/deep/a")),
    ):
        pass


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_says_how_much_is_done(signum, code):
    def work(job, on_tile):
        if job.source.name == "b":
            os.kill(os.getpid(), signum)
        return Done(list(job.outputs), "", {})

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        run_batch(jobs(*"abc"), work, as_json=False, debug=False)
    assert caught.value.exit_code == code
    assert str(caught.value) == "interrupted: 1 of 3 done, and those are whole"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("color", [False, True])
def test_long_and_strange_names_come_out_as_they_are(color, capfdbinary, monkeypatch):
    if color:  # a bar is drawn
        monkeypatch.setattr(progress, "_is_terminal", lambda: True)
        monkeypatch.setenv("FORCE_COLOR", "1")
    name = os.fsdecode(b"[b]bold[/b] \xff " + "ä".encode() + b"x" * 150)
    assert run({"z\n": ImageError("damaged")}, [name, "z\n"]) == 1
    out, err = capfdbinary.readouterr()
    assert out == b"out/" + os.fsencode(name) + b"\n"
    lines = err.splitlines()
    assert any(
        line.endswith("[b]bold[/b] \\udcff ä".encode() + b"x" * 150 + b"  2x2 -> 4x4  whole  0.1 s") for line in lines
    )
    assert any(line.endswith(b"error: z\\n: damaged") for line in lines)
    assert (b"\x1b[" in err) == color


def test_json_holds_no_half_characters(capfd):
    run({}, [os.fsdecode(b"\xff.png")], as_json=True)
    assert json.loads(capfd.readouterr().out)["input"] == "\\xff.png"


def test_off_a_terminal_a_long_file_says_how_far_it_is(capfd, monkeypatch):
    monkeypatch.setattr(progress, "QUIET", -1)
    with progress.Watch([Path("a")]) as watch:
        watch.begin(Path("a"))
        for done in range(1, 101):
            watch.tile(done, 100)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split("  ")[:2] for line in err.splitlines()] == [["a", f"{tenth}0%"] for tenth in range(1, 10)]

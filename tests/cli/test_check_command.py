"""The commands through click; the faults themselves are tested in tests/datasets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from densekit.cli.check import seg_check, sr_check
from densekit.errors import ConfigError
from densekit.image import Picture, write_image
from tests.training_data import make_picture, seg_config, sr_config, write_masked, write_pictures


def call(command, *args):
    """Runs a command: exit code and lines; what it raises comes out, as densekit's main expects it to."""
    result = CliRunner().invoke(command, [str(arg) for arg in args], standalone_mode=False, catch_exceptions=False)
    return result.return_value, result.stdout.splitlines()


@pytest.fixture
def masked(tmp_path):
    return write_masked(tmp_path / "data", 4, 48, 64)


def test_good_data_ends_with_0_and_its_facts(masked):
    code, lines = call(seg_check, masked, "--classes", "road,sky,tree")
    assert code == 0
    assert lines[0] == "train  4 pictures, 4 masks, 64x48"
    heads = ["label", "name", "train pixels", "train share", "train images", "train weight"]
    assert re.split("  +", lines[1]) == heads
    assert re.match(r"0 +road +\d+ +0\.\d{4} +4 +\d\.\d{4}$", lines[2])
    assert lines[-2:] == ["void (255)  0.00% of train; weights are median-frequency, void counted", "no faults"]


def test_errors_end_with_3_grouped_with_the_first_five_paths(masked):
    for i in range(7):
        Image.fromarray(make_picture(48, 64, 50 + i)).save(masked / "images" / f"new{i}.png")
    (masked / "masks" / "0.png").write_bytes(b"")
    code, lines = call(seg_check, "--images", masked / "images", "--masks", masked / "masks", "--num-classes", 3)
    assert code == 3
    start = lines.index("error no-mask: 7")
    assert lines[start + 1] == f"  {masked}/images/new0.png: no mask of that name in {masked}/masks"
    assert lines[start + 6 : start + 8] == ["  and 2 more; --json lists all", "  next: add it, or remove this one"]
    assert "error empty-file: 1" in lines
    assert lines[-1] == "8 errors, 0 warnings"


def test_warnings_alone_end_with_0(masked):
    (masked / "images" / "1.png").unlink()
    code, lines = call(seg_check, masked)
    assert (code, lines[-1]) == (0, "0 errors, 1 warning")


def test_json_is_one_object_a_line_and_the_facts_last(masked):
    for i in range(7):
        (masked / "masks" / f"left{i}.png").write_bytes((masked / "masks" / "0.png").read_bytes())
    code, lines = call(seg_check, masked, "--json")
    *faults, end = map(json.loads, lines)
    assert code == 0
    assert [fault["kind"] for fault in faults] == ["no-image"] * 7
    assert set(faults[0]) == {"kind", "severity", "path", "message", "next_step"}
    assert (end["errors"], end["warnings"], end["kinds"]) == (0, 7, {"no-image": 7})
    assert end["facts"]["train"]["classes"][2]["label"] == 2


def test_low_resolution_pictures_are_compared_with_their_partners(tmp_path):
    hr, lr = write_pictures(tmp_path / "hr", 2), tmp_path / "lr"
    lr.mkdir()
    for path in hr.iterdir():
        with Image.open(path) as im:
            im.resize((24, 20), Image.Resampling.BICUBIC).save(lr / path.name)
    code, lines = call(sr_check, "--hr", hr, "--lr", lr, "--scale", 2)
    assert code == 0
    assert lines[1:3] == ["scale  2", "LR made by  PIL bicubic 2"]
    assert f"  {lr}/0.png: made exactly by PIL bicubic, not by the benchmarks' bicubic" in lines
    code, lines = call(sr_check, hr, "--lr", lr, "--scale", 4)
    assert (code, lines[-1]) == (3, "2 errors, 2 warnings")


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_a_config_names_the_data(tmp_path, masked, task):
    config = sr_config(write_pictures(tmp_path / "p")) if task == "sr" else seg_config(masked)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command, other = (sr_check, seg_check) if task == "sr" else (seg_check, sr_check)
    code, lines = call(command, path, "--json")
    assert code == 3
    assert {json.loads(line)["kind"] for line in lines[:-1]} == {"leak"}  # it validates on what it trains on
    with pytest.raises(ConfigError, match=rf"run\.yaml: its task is {task}; use densekit {task} check"):
        call(other, path)


def test_options_change_what_a_config_says(tmp_path, masked):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(seg_config(masked).model_dump(mode="json")))
    _, lines = call(seg_check, path, "--json", "--num-classes", 2, "--crop-size", 50)
    assert json.loads(lines[-1])["kinds"] == {"void-id": 8, "leak": 4, "small": 4}
    _, lines = call(seg_check, path, "--json", "--num-classes", 2, "--ignore-index", 2)
    assert json.loads(lines[-1])["kinds"] == {"leak": 4}


def test_wrong_usage_says_what_to_give(tmp_path, masked):
    with pytest.raises(ConfigError, match="no data to check; give a config, or a folder with --hr DIR"):
        call(sr_check)
    with pytest.raises(ConfigError, match="no data to check; give a config, or --images DIR --masks DIR"):
        call(seg_check)
    with pytest.raises(ConfigError, match="none: no such folder; give folders alone, or one config alone"):
        call(seg_check, masked, tmp_path / "none")
    with pytest.raises(ConfigError, match="no config named 'sr/rdn_tiny_x9'; did you mean 'sr/rdn_tiny_x"):
        call(sr_check, "sr/rdn_tiny_x9")
    with pytest.raises(ConfigError, match="--classes has 2 names, but --num-classes is 3"):
        call(seg_check, masked, "--classes", "a,b", "--num-classes", 3)
    with pytest.raises(ConfigError, match=r"x\.pdf: the report of a check is HTML; use the suffix \.html"):
        call(seg_check, masked, "--report", tmp_path / "x.pdf")
    with pytest.raises(ConfigError, match=r"x\.html: cannot be written"):
        call(seg_check, masked, "--report", tmp_path / "none" / "x.html")


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.found = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for key, value in attrs if key in ("src", "href")]


def test_the_page_holds_every_fault_escaped_and_nothing_from_elsewhere(tmp_path):
    folder = tmp_path / "p"
    for i in range(25):
        folder.mkdir(exist_ok=True)
        (folder / f"<img src=x onerror=a>{i}.png").write_bytes(b"")
    write_image(folder / "good.png", Picture(make_picture(40, 40, 0)))
    code, lines = call(sr_check, folder, "--report", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    call(sr_check, folder, "--report", tmp_path / "b.html")
    assert (tmp_path / "b.html").read_text() == page
    assert (code, lines[-1]) == (3, "25 errors, 0 warnings")
    assert "<h1>Check of super-resolution data: 25 errors, 0 warnings</h1>" in page
    assert page.count("&lt;img src=x onerror=a&gt;") == 25
    parser = Links()
    parser.feed(page)
    assert not {"img", "script", "link"} & set(parser.tags)
    assert not parser.found


@pytest.mark.skipif(os.name != "posix", reason="other systems have no names that are not text")
def test_names_that_are_no_text_can_be_printed(tmp_path):
    folder = write_pictures(tmp_path / "p", 1)
    (folder / os.fsdecode(b"b\xff\n.png")).write_bytes(b"")
    for options in ((), ("--json",), ("--report", tmp_path / "r.html")):
        code, lines = call(sr_check, folder, *options)
        assert code == 3
        shown = r"b\\xff\n.png" if options == ("--json",) else r"b\udcff\n.png"
        assert any(shown in line for line in lines)


def test_a_check_needs_no_torch(masked):
    code = (
        "import sys; from densekit.cli.check import seg_check, sr_check\n"
        f"seg_check.main([{str(masked)!r}], standalone_mode=False)\n"
        f"sr_check.main([{str(masked / 'images')!r}], standalone_mode=False)\n"
        "assert not {'torch', 'albumentations', 'kornia'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

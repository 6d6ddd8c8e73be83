from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys

import click
import pytest

from densekit.cli.main import root
from densekit.errors import CheckpointError, ConfigError, DataError, DeviceError, ImageError, Interrupted

MODULES = """
import json, sys
from densekit.cli import main
try:
    code = main(json.loads(sys.argv[1]))
finally:
    print(json.dumps([code, sorted(name for name in sys.modules if "." not in name)]), file=sys.stderr)
"""


@pytest.fixture
def raising(monkeypatch):
    """Makes `densekit models` raise an error."""

    def arrange(error):
        def fail(**_):
            raise error

        monkeypatch.setattr(root.commands["models"], "callback", fail)

    return arrange


@pytest.mark.parametrize(
    ("args", "code", "absent"),
    [
        (["--help"], 0, "torch pydantic numpy PIL rich yaml cv2 safetensors"),
        (["--version"], 0, "torch pydantic numpy PIL rich yaml cv2 safetensors"),
        (["sr", "predict", "--help"], 0, "torch pydantic numpy PIL rich yaml cv2 safetensors"),
        (["models"], 0, "torch pydantic numpy PIL rich yaml cv2 safetensors"),
        (["encoder", "--help"], 0, "torch pydantic numpy PIL rich yaml cv2 safetensors"),
        (["encoder", "compare", "--help"], 0, "torch pydantic numpy PIL rich yaml cv2 safetensors"),
        (["doctor", "--help"], 0, "torch pydantic numpy PIL rich yaml cv2 safetensors"),
        (["completion", "bash"], 0, "torch pydantic numpy PIL rich yaml cv2 safetensors"),
        (["sr", "train", "sr/rdn_tinny_x2"], 2, "torch numpy PIL rich cv2"),
        (["sr", "predict", "no-such-file.png", "-m", "no-such-model"], 2, "torch pydantic rich yaml cv2"),
        (["seg", "predict", "no-such-file.png"], 2, "torch pydantic rich yaml cv2"),
    ],
)
def test_what_needs_no_network_imports_none(args, code, absent, tmp_path):
    done = subprocess.run([sys.executable, "-c", MODULES, json.dumps(args)], capture_output=True, cwd=tmp_path)
    found, modules = json.loads(done.stderr.splitlines()[-1])
    assert (found, set(absent.split()) & set(modules)) == (code, set())


def test_help_takes_little_more_than_click_itself():
    def seconds(code):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time of both in turn: on a calm machine 0.08 s and 0.05 s.
    pairs = [(seconds("from densekit.cli import main; main()"), seconds("import click")) for _ in range(4)]
    ours, clicks = (min(times) for times in zip(*pairs, strict=True))
    assert ours < 3 * clicks


def test_help_and_version_go_to_stdout(run):
    version = run("--version")
    assert (version.code, version.out, version.err) == (0, ["densekit 0.1.0"], [])
    help_text = run("-h")
    assert help_text.code == 0
    assert help_text.err == []
    assert {"bn", "completion", "doctor", "encoder", "models", "seg", "sr"} <= {
        line.split()[0] for line in help_text.out if line.strip()
    }
    assert any("Exit codes: 0 all done" in line for line in help_text.out)
    assert "rdn-tiny-x4" in " ".join(run("sr", "predict", "-h").out)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["sr", "predikt"], "No such command 'predikt'"),
        (["sr", "predict", "a.png", "--overwrit"], "No such option"),
        (["sr", "predict", "a.png", "--precision", "fp61"], "did you mean 'fp16'?"),
        (["sr", "predict", "a.png", "--tile", "atuo"], "'atuo' is not auto, off or a number of pixels; did you mean"),
        (["sr", "predict", "a.png", "--max-pixels", "0"], "0 is not in the range x>=1"),
        (["sr", "predict"], "Missing argument"),
    ],
)
def test_wrong_usage_is_named_with_what_may_be_meant(run, args, said):
    result = run(*args)
    assert result.code == 2
    assert result.out == []
    assert result.err[0].startswith("Usage: densekit sr")
    assert said in result.err[-1]


def test_a_group_without_a_command_shows_its_help_on_stderr(run):
    result = run("seg")
    assert (result.code, result.out) == (2, [])
    assert any("predict" in line for line in result.err)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("a.yaml:3: two\nb.yaml:4: lines"), 2, "error: a.yaml:3: two"),
        (DataError("no masks"), 3, "error: no masks"),
        (ImageError("a.png: damaged"), 3, "error: a.png: damaged"),
        (DeviceError("too large"), 4, "error: too large"),
        (CheckpointError("damaged file"), 5, "error: damaged file"),
        (Interrupted("saved", 2), 130, "error: saved"),
        (Interrupted("saved", 15), 143, "error: saved"),
        (KeyboardInterrupt(), 130, "error: interrupted; nothing is half written"),
        (click.Abort(), 130, "error: interrupted; nothing is half written"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 1, "error: runs/a: No space left on device"),
        (KeyError("a\nb"), 1, "error: unexpected KeyError: 'a\\nb'; run again with --debug"),
    ],
)
def test_every_error_has_its_code_and_one_line_for_each_line(run, raising, error, code, line):
    raising(error)
    result = run("models")
    assert (result.code, result.out) == (code, [])
    lines = [text for text in result.err if text]  # click closes the line of a terminal's ^C
    assert lines[0] == line
    assert all(text.startswith("error: ") for text in lines)
    assert len(lines) == str(error).count("\n") + 1 if code == 2 else len(lines) == 1


@pytest.mark.parametrize("args", [["--debug", "models"], ["models", "--debug"], ["models", "rdn", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(run, raising, args):
    raising(RuntimeError("why"))
    result = run(*args)
    assert result.code == 1
    assert any(line.startswith("Traceback") for line in result.err)
    assert result.err[-1].startswith("error: unexpected RuntimeError: why")


def test_after_a_double_dash_debug_is_a_name_like_any_other(run):
    result = run("models", "--", "--debug")
    assert (result.code, result.err) == (2, ["error: no model matches '--debug'"])


def test_a_reader_that_goes_away_is_no_error(start):
    read, write = os.pipe()
    os.close(read)
    process = start("models", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode == 1

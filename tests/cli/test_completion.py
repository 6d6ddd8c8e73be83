from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from densekit.config import list_configs
from densekit.pretrained import trained_names

CODE = """
import atexit, sys
from densekit.cli import main
atexit.register(lambda: print(*sorted({"torch", "numpy", "cv2"} & set(sys.modules)), file=sys.stderr))
sys.argv[0] = "densekit"
main()
"""


@pytest.fixture
def complete():
    """Asks as bash does what may stand for the last word: the candidates, and the heavy modules that this imported."""

    def ask(line, shell="bash"):
        words = line.split(" ")
        given = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        environment = {**os.environ, "_DENSEKIT_COMPLETE": f"{shell}_complete", **given}
        done = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False
        )
        return done.stdout.split(), done.stderr.split()

    return ask


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("densekit doc", ["plain,doctor"]),
        ("densekit encoder fea", ["plain,features"]),
        ("densekit sr predict -m rdn-tiny", ["plain,rdn-tiny-x2", "plain,rdn-tiny-x4"]),
        ("densekit seg predict -m fc", ["plain,fc-densenet-camvid", "plain,fc-densenet-nuclei"]),
        ("densekit sr predict -m fc", ["file,fc"]),  # of the other task, so only files may follow
        (
            "densekit sr train sr/rdn_tiny",
            [f"plain,{name}" for name in list_configs() if name.startswith("sr/rdn_tiny")],
        ),
        ("densekit sr train my", ["file,my"]),
        ("densekit encoder info densenet12", ["plain,densenet121"]),
        ("densekit encoder reuse -m rdn-tiny-x2", ["plain,rdn-tiny-x2"]),
        ("densekit bn recalibrate fc-densenet-n", ["plain,fc-densenet-nuclei"]),
        ("densekit models srd", ["plain,srdensenet"]),
        ("densekit completion z", ["plain,zsh"]),
    ],
)
def test_names_are_completed_without_torch(complete, line, expected):
    assert complete(line) == (expected, [])


def test_every_model_is_offered_where_nothing_is_typed_yet(complete):
    found, _ = complete("densekit encoder features -m ")
    assert found == [f"plain,{name}" for name in trained_names()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_densekit(run, shell):
    result = run("completion", shell)
    assert result.code == 0
    script = "\n".join(result.out)
    assert "_DENSEKIT_COMPLETE" in script
    assert f"{shell}_complete" in script


def test_the_script_is_one_that_bash_takes(run, tmp_path):
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    script = tmp_path / "densekit.bash"
    script.write_text("\n".join(run("completion", "bash").out) + "\n")
    subprocess.run(["bash", "-n", script], check=True)


def test_another_shell_is_refused_with_those_there_are(run):
    result = run("completion", "zssh")
    assert (result.code, result.out) == (2, [])
    assert "did you mean 'zsh'?" in result.err[-1]

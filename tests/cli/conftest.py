from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from densekit.cli import main

COMMAND = Path(sysconfig.get_path("scripts"), "densekit")


@pytest.fixture(autouse=True)
def _default_allocator(monkeypatch):
    """What suits one command does not suit the test process."""
    monkeypatch.setenv("DENSEKIT_MALLOC", "0")


@pytest.fixture
def run(capfd):
    """Runs a command line in this process: code, stdout lines, stderr lines."""

    def call(*args):
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        assert "Traceback" not in err or "--debug" in args
        return SimpleNamespace(code=code, out=out.splitlines(), err=err.splitlines())

    return call


@pytest.fixture
def start():
    """Starts the installed command, or `python -c` with the given code, with one thread."""
    started = []

    def call(*args, code=None, **options):
        head = [COMMAND] if code is None else [sys.executable, "-c", code]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([*head, *args], env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


@pytest.fixture
def picture():
    """Writes a smooth picture with a little noise, of any mode and size, and returns its path."""

    def write(path, size=(24, 16), mode="RGB", **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        channels = len(mode)
        y, x = np.mgrid[: size[1], : size[0]]
        rng = np.random.default_rng(sum(os.fsencode(path.name)))
        values = (x * 5 + y * 3)[..., None] + np.arange(channels) * 20 + rng.integers(0, 40, (*x.shape, channels))
        pixels = (values % 230 + 10).astype(np.uint8)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path, **options)
        return path

    return write

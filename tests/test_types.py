"""The types that others see: each public name of the package has one, which pyright finds without guessing."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

PROGRAM = Path(sysconfig.get_path("scripts"), "pyright")


@pytest.mark.slow
def test_every_public_name_has_a_type(tmp_path):
    if not PROGRAM.exists():
        pytest.skip("pyright is not installed")
    # It asks the first Python on the path for the packages; in the checkout itself it finds none.
    path = os.pathsep.join([str(PROGRAM.parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [PROGRAM, "--verifytypes", "densekit", "--ignoreexternal", "--outputjson"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)["typeCompleteness"]
    unknown = [symbol["name"] for symbol in report["symbols"] if symbol["isExported"] and not symbol["isTypeKnown"]]
    assert report["exportedSymbolCounts"]["withKnownType"] > 2000
    assert not unknown
    assert report["completenessScore"] == 1

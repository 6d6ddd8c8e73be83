"""What is in the wheel, and that it works where the repository is not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import densekit
from densekit.config import list_configs
from densekit.pretrained import WEIGHTS, trained_cards, trained_names
from tools.pack_weights import MAX_TOTAL

ROOT = Path(__file__).parents[1]
EMBEDDED = ["fc-densenet-camvid", "fc-densenet-nuclei", "rdn-tiny-x2", "rdn-tiny-x4"]


def test_the_embedded_models_are_there_and_small_together():
    assert trained_names() == EMBEDDED
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= MAX_TOTAL


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_card_of_an_embedded_model_says_what_a_stranger_wants_to_know(name):
    card = trained_cards(name)[name]
    assert card.recipe == f"{card.task}/{name.replace('-', '_')}"
    assert card.recipe in list_configs()
    assert card.data
    assert card.licence
    assert {"protocol", "data"} < card.metrics.keys()
    assert "/" not in card.data + card.metrics["data"], "names of data sets, not folders"


def test_the_changelog_names_the_version():
    assert densekit.__version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built as a user would build it; needs the build back end, from a network or a local copy."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=280)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_code_types_configs_weights_and_licence_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert f"densekit-{densekit.__version__}-py3-none-any.whl" == wheel.name
    assert "densekit/py.typed" in names
    assert "densekit/configs/schema.json" in names
    assert {f"densekit/configs/{name}.yaml" for name in list_configs()} < names
    assert {f"densekit/weights/{name}.safetensors" for name in EMBEDDED} < names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "densekit").rglob("*.py")} < names
    assert {name.split("/")[0] for name in names} == {"densekit", f"densekit-{densekit.__version__}.dist-info"}
    assert f"densekit-{densekit.__version__}.dist-info/licenses/LICENSE" in names


@pytest.mark.slow
def test_the_wheel_works_away_from_the_repository(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import densekit, densekit.config as c, densekit.cli; print(densekit.__file__); print(*c.list_configs());"
        "c.load_config('sr/rdn_tiny_x2'); print(*densekit.list_models('*-*'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    home, configs, models = result.stdout.splitlines()
    assert Path(home).parent == tmp_path / "densekit"
    assert configs.split() == list_configs()
    assert models.split() == EMBEDDED

"""The README is run: its Python, the words of its commands, its tables and its links."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from densekit.cli.main import root
from densekit.config import list_configs, load_config
from densekit.errors import DensekitError
from densekit.models import model_names
from densekit.pretrained import trained_names
from tools import figures
from tools.make_samples import FOLDER as SAMPLES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "data").rglob("README.md")), *sorted((ROOT / ".github").glob("*.md"))]


def commands() -> list[list[str]]:
    """Returns the words of every `densekit` command in the README."""
    lines = [line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.startswith("$ densekit")]
    assert len(words) > 8
    return [rest for _, *rest in words]


def test_the_python_of_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    shutil.copy(SAMPLES / "street.png", tmp_path / "photo.png")
    shutil.copy(SAMPLES / "nuclei.png", tmp_path / "cells.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    snippets = [text for kind, text in BLOCKS if kind == "python"]
    assert len(snippets) == 4
    for text in snippets:
        exec(compile(text, "README.md", "exec"), names)
    assert names["image"].shape == (288, 384, 3)
    assert names["ids"].shape == (256, 256)
    assert names["encoder"].reductions == (4, 8, 8)
    assert names["lab"].encoder.output_stride == 16
    printed = capsys.readouterr().out
    assert "torch.Size([1, 3, 72, 96])" in printed
    assert "torch.Size([1, 2, 64, 64]) [256, 440, 744, 1040]" in printed


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_of_the_readme_parses_and_names_what_there_is(words):
    command: click.Command = root
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    values = command.make_context("densekit", list(words), obj=False, **root.context_settings).params
    if values.get("model") and not Path(values["model"]).suffix:
        assert values["model"] in (*trained_names(), *model_names())
    if command.name == "train" and f"-o {values['name']}" not in TEXT:  # but for what another command writes
        assert values["name"] in list_configs()
        load_config(values["name"], values["overrides"])


def test_the_tables_of_figures_are_current():
    assert figures.render() in TEXT, "run: python -m tools.figures"


def test_the_table_of_exit_codes_holds_those_of_every_error():
    def codes(kind: type[DensekitError]) -> Iterator[int]:
        yield kind.exit_code
        for child in kind.__subclasses__():
            yield from codes(child)

    assert {str(code) for code in codes(DensekitError)} <= set(re.findall(r"^\| (\d) \|", TEXT, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert "://" in target or (page.parent / target).exists(), target

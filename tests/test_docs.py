"""The documentation: every snippet runs, every class of errors has a page, and the site builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import densekit.train.propose
from densekit.config import Config, list_configs
from densekit.errors import DensekitError, Interrupted
from densekit.metrics import PROTOCOLS, SEG_PROTOCOLS
from densekit.train.sizes import Size
from tests.docs_inputs import prepare
from tests.snippets import Session, blocks_of, installed
from tools import docs_pages

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md"))}
WITH_SNIPPETS = [
    name
    for name, path in PAGES.items()
    if any(block.kind in ("python", "console") and not block.not_run for block in blocks_of(path))
]
NOT_RUN = {  # page: why, once for each block
    "container.md": ["needs docker", "needs docker and a GPU"],
    "index.md": ["needs the network"],
    "tutorials/exchange.md": ["needs the network"],
    "tutorials/reproduce.md": ["takes days"],
}
TINY = {"name": "fc_densenet", "num_init_features": 4, "growth_rate": 4, "num_pools": 2, "num_layers": 1}


def error_classes(kind: type[DensekitError] = DensekitError) -> list[type[DensekitError]]:
    """Every class of errors."""
    return [kind, *(one for child in kind.__subclasses__() for one in error_classes(child))]


def page_of(kind: type[DensekitError]) -> str:
    """errors/config-error.md for ConfigError and what narrows it down elsewhere."""
    public = next(one for one in kind.__mro__ if one.__module__ == "densekit.errors")
    name = "SomeFailed" if public is DensekitError else public.__name__
    return "errors/" + re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() + ".md"


def exit_code_of(name: str) -> int | None:
    """The code that a page says its errors end with."""
    said = re.search(r"\*\*Exit code (\d+)", PAGES[name].read_text("utf-8"))
    return int(said[1]) if said else None


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A reader in an empty folder, with networks of a few milliseconds where one is to be proposed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DENSEKIT_MALLOC", "0")
    monkeypatch.setattr(densekit.train.propose, "SIZES", {"seg": (Size(TINY, 32, 2),)})
    monkeypatch.setattr(densekit.train.propose, "REHEARSED_STEPS", 3)
    return Session()


@pytest.mark.parametrize("name", WITH_SNIPPETS)
def test_the_snippets_of_a_page_run_from_top_to_bottom(name, session, tmp_path):
    prepare(name, tmp_path)
    assert session.run(blocks_of(PAGES[name]))
    assert not [text for _, text in session.codes if "Traceback" in text or "unexpected" in text]
    if code := exit_code_of(name):
        failed = [(own, text) for own, text in session.codes if re.search("^error", text, re.MULTILINE | re.IGNORECASE)]
        assert not [text for own, text in failed if own != code]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, path in PAGES.items() if any(b.slow for b in blocks_of(path))])
def test_a_page_with_snippets_that_take_longer_runs_as_a_whole(name, session, tmp_path):
    prepare(name, tmp_path)
    blocks = blocks_of(PAGES[name])
    assert session.run(blocks, slow=True) == sum(b.kind in ("python", "console") and not b.not_run for b in blocks)


def test_commands_run_as_a_process_of_their_own_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare("errors/index.md", tmp_path)
    session = Session(installed)
    assert session.run([block for block in blocks_of(PAGES["errors/index.md"]) if block.kind == "console"])
    assert [code for code, _ in session.codes] == [1]


def test_a_block_that_is_not_run_is_one_of_few():
    found = {name: [block.not_run for block in blocks_of(path) if block.not_run] for name, path in PAGES.items()}
    assert {name: reasons for name, reasons in found.items() if reasons} == NOT_RUN


def test_every_class_of_errors_has_a_page_with_its_exit_code():
    index = PAGES["errors/index.md"].read_text("utf-8")
    for kind in error_classes():
        assert exit_code_of(page_of(kind)) == (130 if kind is Interrupted else kind.exit_code), kind
        assert page_of(kind).removeprefix("errors/") in index


def test_an_error_that_is_quoted_and_not_provoked_is_worded_as_in_the_code():
    templates = [
        re.compile("(.+: )?" + ".*".join(map(re.escape, message.text.split("{...}"))))
        for message in docs_pages.messages()
    ]
    quoted = [
        line.removeprefix("error: ")
        for name, path in PAGES.items()
        for block in blocks_of(path)
        for line in block.text.splitlines()
        if block.kind == "text" and line.startswith("error: ") and name.startswith("errors/")
    ]
    assert len(quoted) >= 10
    assert not [line for line in quoted if not any(template.fullmatch(line) for template in templates)]


def test_every_command_and_every_key_is_in_the_reference():
    commands, configs = docs_pages.commands(), docs_pages.configs()
    for words, command in docs_pages.leaves(("densekit",), docs_pages.root):
        assert f"## {' '.join(words)}\n" in commands
        options = [p.opts[0] for p in command.params if isinstance(p, click.Option)]
        assert all(f"`{option}" in commands or f", {option}" in commands for option in options)
    for section in ("model", "data", "optim", "train", "gan", "eval"):
        kind = Config.model_json_schema()["$defs"][f"{section.capitalize()}Config"]
        assert all(f"| `{section}.{key}` |" in configs for key in kind["properties"])


def test_every_shipped_config_and_protocol_is_in_the_reference():
    assert all(f"| `{name}` |" in docs_pages.shipped() for name in list_configs())
    assert all(f"| `{name}` |" in docs_pages.protocols() for name in (*PROTOCOLS, *SEG_PROTOCOLS))


def test_every_error_in_the_code_is_among_the_messages():
    text = docs_pages.all_messages()
    assert "| `{...}: no such file; check the name` | `densekit/image.py` |" in text
    assert len(list(docs_pages.messages())) > 300


@pytest.mark.parametrize("name", PAGES)
def test_every_link_to_a_page_or_picture_leads_to_one(name):
    for target in re.findall(r"\]\(([^)#\s]+)", PAGES[name].read_text("utf-8")):
        path = os.path.normpath(Path(name).parent / target)
        assert "://" in target or (DOCS / path).exists() or path in docs_pages.WHOLE, target


def test_the_pages_are_all_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert not [name for name in PAGES if name not in navigation]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_without_a_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **unreachable, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text("utf-8")
        fetched = re.findall(
            r'<(?:script|img|iframe)[^>]*src="(\w+:)?//|<link[^>]*rel="stylesheet"[^>]*href="(\w+:)?//', text
        )
        assert not fetched, page
        assert "<!-- generate:" not in text

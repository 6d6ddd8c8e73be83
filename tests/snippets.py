"""The snippets of a Markdown page, and how they are run: Python and commands, with what they print below them.

Lines below a command are output that it has to print, in this order; lines that are left out do not matter, and `...`
stands for anything. A `text` block below a `python` one is what that prints, or the error that it ends with. A comment
above a block says what a test does otherwise: `<!-- not run: REASON -->`, `<!-- slow: REASON -->`, or
`<!-- tested with: WORDS -->`, whose words go to the end of its command.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekit.cli import main

SHELL = {"cat", "head", "ls"}  # what else a snippet may type
_BLOCK = re.compile(
    r"^(?P<note><!-- (?:not run|slow|tested with): [^>]* -->\n+)?```(?P<kind>\w+)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_ERROR = re.compile(r"densekit\.errors\.(\w+): ")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it is on, and what the comment above it says."""

    kind: str
    text: str
    line: int
    not_run: str = ""
    tested_with: str = ""
    slow: str = ""


def blocks_of(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    text = page.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        what, _, said = (match["note"] or "").strip().removeprefix("<!-- ").removesuffix(" -->").partition(": ")
        line = text.count("\n", 0, match.start("kind")) + 1
        found.append(Block(match["kind"], match["text"], line, **{what.replace(" ", "_"): said} if said else {}))
    return found


def commands_of(block: Block) -> list[tuple[str, list[str]]]:
    """Returns the commands of a `console` block, each with the lines that stand below it."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif line.strip():
            commands[-1][1].append(line)
    return commands


def assert_lines(expected: list[str], printed: str) -> None:
    """Passes output that holds the expected lines in their order."""
    lines = iter(printed.splitlines())
    for wanted in expected:
        pattern = re.compile(".*".join(map(re.escape, wanted.rstrip().split("..."))))
        assert any(pattern.fullmatch(line.rstrip()) for line in lines), f"expected {wanted!r}, in order, in\n{printed}"


def in_process(words: list[str]) -> tuple[int, str]:
    """Runs `densekit` here; returns its exit code, and all that it prints."""
    raw = io.BytesIO()  # the command prints paths as bytes
    stream = io.TextIOWrapper(raw, "utf-8", write_through=True)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        code = main(words)
    return code, raw.getvalue().decode()


def installed(words: list[str]) -> tuple[int, str]:
    """Runs the `densekit` that is installed, as a process of its own."""
    command = [Path(sysconfig.get_path("scripts"), "densekit"), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


class Session:
    """One reader, who tries a page from top to bottom in one folder."""

    def __init__(self, densekit: Callable[[list[str]], tuple[int, str]] = in_process) -> None:
        self.densekit = densekit
        self.names: dict[str, Any] = {}
        self.codes: list[tuple[int, str]] = []  # exit code and output of each command

    def run(self, blocks: list[Block], *, slow: bool = False) -> int:
        """Runs the blocks of a page, the slow ones if they are asked for; returns how many."""
        count = 0
        for place, block in enumerate(blocks):
            if block.not_run or (block.slow and not slow) or block.kind not in ("python", "console"):
                continue
            count += 1
            if block.kind == "console":
                self._console(block)
            else:
                below = blocks[place + 1] if place + 1 < len(blocks) else None
                self._python(block, below.text.splitlines() if below and below.kind == "text" else [])
        return count

    def _console(self, block: Block) -> None:
        for line, expected in commands_of(block):
            words = shlex.split(line, comments=True)
            if words[:2] == ["echo", "$?"]:
                printed = str(self.codes[-1][0])
            elif words[0] == "densekit":
                self.codes.append(self.densekit([*words[1:], *shlex.split(block.tested_with)]))
                printed = self.codes[-1][1]
            else:
                assert words[0] in SHELL, f"{line!r} is no command that a test runs; mark the block as not run"
                printed = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
            assert_lines(expected, printed)

    def _python(self, block: Block, expected: list[str]) -> None:
        error = _ERROR.match(expected[0]) if expected else None
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * block.line + block.text, "snippet", "exec"), self.names)
        except Exception as raised:
            if not error or error[1] not in (kind.__name__ for kind in type(raised).__mro__):
                raise
            printed.write(f"{error[0]}{raised}\n")
        else:
            assert not error, f"expected {expected[0]!r}, but nothing was raised"
        assert_lines(expected, printed.getvalue())

"""What a check of a data set found, as a page that needs nothing beside it and runs no script."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
from pathlib import Path

from densekit.datasets.checks.result import CheckResult, Fault
from densekit.datasets.checks.text import class_rows, count_text, fact_lines, where
from densekit.errors import ConfigError
from densekit.files import atomic_write, printable
from densekit.report.markup import Html, tag

_STYLE = Path(__file__).with_name("report.css")
_TASKS = {"sr": "super-resolution", "seg": "segmentation"}
_OPEN = 20  # faults of a kind that are not folded away


def write_page(path: str | os.PathLike[str], result: CheckResult, task: str) -> None:
    """Writes the page of a check, whole or not at all; equal results give equal bytes.

    Raises:
        ConfigError: another suffix than .html, or a path that cannot be written.
    """
    check_page_path(path)
    try:
        atomic_write(path, check_page(result, task).encode())
    except OSError as error:
        cause = error.strerror or error
        raise ConfigError(
            f"{printable(path)}: cannot be written ({cause}); choose a folder that you may write to"
        ) from error


def check_page_path(path: str | os.PathLike[str]) -> None:
    """Passes a path that a page can be written to; to be called before the work that the page is about.

    Raises:
        ConfigError: another suffix than .html, or a folder that is missing.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{printable(path)}: the report of a check is HTML; use the suffix .html")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"{printable(path)}: cannot be written (no such folder); create the folder first")


def check_page(result: CheckResult, task: str) -> str:
    """Returns the page: counts, facts, the table of classes, then all faults by kind; every name is escaped."""
    style = _STYLE.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = f"Check of {_TASKS[task]} data: {count_text(result)}"
    rows = class_rows(result.facts)
    table = {" ".join(row) for row in rows}
    facts = [line for line in fact_lines(result.facts) if " ".join(line.split()) not in table]
    groups = itertools.groupby(result.faults, lambda fault: (fault.severity, fault.kind))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        tag("p", "densekit check", class_="kicker"),
        tag("h1", title),
        tag("main", *(tag("p", line) for line in facts), _table(rows), *(_group(*key, list(g)) for key, g in groups)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


def _table(rows: list[list[str]]) -> Html:
    if not rows:
        return Html("")
    heads = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in rows[0])))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows[1:]))
    return tag("div", tag("table", heads, body), class_="scroll", tabindex=0)


def _group(severity: str, kind: str, faults: list[Fault]) -> Html:
    """Returns the faults of a kind, each with its next step; all but the first are folded away."""
    items = [tag("li", where(fault), "; ", tag("em", fault.next_step)) for fault in faults]
    more = tag("details", tag("summary", f"{len(items) - _OPEN} more"), tag("ul", *items[_OPEN:]))
    return tag(
        "section",
        tag("h2", f"{severity} {kind}: {len(faults)}"),
        tag("ul", *items[:_OPEN]),
        more if len(items) > _OPEN else "",
        class_="failed" if severity == "error" else None,
    )

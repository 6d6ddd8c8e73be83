"""An evaluation as a file to read: HTML in one piece, Markdown for a paper, JSON for a program."""

from __future__ import annotations

import os
from pathlib import Path

from densekit.errors import ConfigError
from densekit.files import atomic_write, printable
from densekit.report.evaluation import Evaluation, Row

__all__ = ["SUFFIXES", "Evaluation", "Row", "check_path", "write_report"]

SUFFIXES = (".html", ".md", ".json")


def write_report(path: str | os.PathLike[str], evaluation: Evaluation, *, max_pictures: int = 100) -> None:
    """Writes a report of the kind that the suffix names, whole or not at all; equal input gives equal bytes.

    Args:
        path: ends in .html, .md or .json; an existing file is replaced.
        evaluation: what was measured.
        max_pictures: for HTML, of how many rows `pictures` is called, which may mean to run the model again: first
            the worst five, the median and the best, then others from the worst on.

    Raises:
        ConfigError: another suffix, or a path that cannot be written.
    """
    kind = check_path(path)
    if kind == ".html":
        from densekit.report.html import to_html

        text = to_html(evaluation, max_pictures=max_pictures)
    elif kind == ".md":
        from densekit.report.markdown import to_markdown

        text = to_markdown(evaluation)
    else:
        from densekit.report.record import to_json

        text = to_json(evaluation)
    try:
        atomic_write(path, text.encode())
    except OSError as error:
        raise ConfigError(
            f"{printable(path)}: cannot be written ({error.strerror or error}); choose a folder that you may write to"
        ) from error


def check_path(path: str | os.PathLike[str]) -> str:
    """Returns the suffix of a report's path in lower case; to be called before the work that the report is about.

    Raises:
        ConfigError: no report has this suffix, or the folder is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{printable(path)}: no report has the suffix {path.suffix!r}; expected one of {' '.join(SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{printable(path)}: the folder {printable(path.parent)} is missing; create it first")
    return path.suffix.lower()

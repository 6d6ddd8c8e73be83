"""What commands write: columns on a terminal, and new files that replace nothing unasked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densekit.errors import ConfigError
from densekit.files import printable


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as lines whose cells stand in columns, never cut."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def new_file(out: str, suffixes: Sequence[str], *, overwrite: bool) -> Path:
    """Returns the path of a file that is to be written, before any work.

    Raises:
        ConfigError: another suffix, no such folder, or the file exists and may not be replaced.
    """
    path, name = Path(out), printable(out)
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"-o {name}: expected a name that ends with {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ConfigError(f"-o {name}: the folder {printable(path.parent)} is missing; create it first")
    if path.is_dir():
        raise ConfigError(f"-o {name} is a folder; give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"-o {name} already exists; add --overwrite or choose another name")
    return path


def json_line(record: Mapping[str, Any]) -> str:
    """Returns a JSON object on one line, with null where JSON has no number for a value: NaN, infinity."""
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def count(number: int) -> str:
    """Returns a number with its digits in threes."""
    return f"{number:,}"


def mebibytes(number: int) -> str:
    """Returns bytes as MiB."""
    return f"{number / 2**20:.1f} MiB"


def giga(number: int) -> str:
    """Returns multiplications as GMAC."""
    return f"{number / 1e9:.3f} GMAC"

"""Lists of pictures: a text file with one path a line, relative to the folder it lies in; without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from densekit.errors import DataError
from densekit.files import printable
from densekit.image import SUFFIXES

MAX_BYTES = 1 << 26  # of a list: a million paths of usual length
SHOWN = 3  # faults that a message spells out


def is_list(path: str | Path) -> bool:
    """Says whether a name is that of a list and not of a folder."""
    return Path(path).suffix.lower() == ".txt" and not Path(path).is_dir()


def read_list(path: str | Path) -> list[Path]:
    """Returns the files that a list names, in its order; blank lines and those that start with # are skipped.

    Raises:
        DataError: the list cannot be read or is empty, or lines of it name no picture in its folder or below: another
            kind of file, a missing one, an absolute path, or a way out of the folder by .. or by a link.
    """
    path, name = Path(path), printable(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{name}: larger than {MAX_BYTES >> 20} MiB; expected a list with one path a line")
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); expected a list with one path a line") from error
    root = os.path.realpath(path.parent)
    found, faults = [], []
    for number, line in enumerate(lines, 1):
        entry = os.fsdecode(line.strip())
        if not entry or entry.startswith("#"):
            continue
        found.append(path.parent / entry)
        if fault := _fault(entry, found[-1], root):
            faults.append(f"line {number}: '{printable(entry)}' {fault}")
    if faults:
        shown = "; ".join(faults[:SHOWN])
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError(f"{name}: {len(faults)} of {len(found)} paths cannot be used: {shown}{more}")
    if not found:
        raise DataError(f"{name}: an empty list; write one path a line, relative to its folder")
    return found


def common_root(paths: Sequence[Path]) -> Path:
    """Returns the deepest folder that holds all pictures of a list: where their names start.

    So `HR/1.png` in one list and `LR/1.png` in another have equal names.
    """
    return Path(os.path.commonpath([path.parent for path in paths]))


def _fault(entry: str, path: Path, root: str) -> str:
    """Returns what is wrong with an entry, or an empty text."""
    if "\0" in entry:
        return "is no path"
    if Path(entry).is_absolute():
        return "is an absolute path; write it relative to the folder of the list"
    if ".." in Path(entry).parts:
        return "leads out of the folder of the list by ..; put the list above its pictures"
    if not Path(os.path.realpath(path)).is_relative_to(root):
        return "is a link out of the folder of the list; put the list where its pictures are"
    if path.suffix.lower() not in SUFFIXES:
        return f"has none of the suffixes {' '.join(SUFFIXES)}"
    return "" if path.is_file() else "is no file"

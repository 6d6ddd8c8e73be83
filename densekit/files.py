"""Writing a file so that it is either the old one or the new one, never a part of either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an OSError that names no file, as that of a full disk, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path` as `replacing` does.

    Raises:
        OSError: the folder is missing, read-only or full; the temporary file is gone again.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file that becomes `path` at the end: temporary file beside it, fsync, rename, fsync of the folder.

    A crash, a kill, a full disk or an exception inside leaves the previous file as it was.

    Raises:
        OSError: the folder is missing, read-only or full; the temporary file is gone again.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # the rename itself must survive a power loss; other systems cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with naming(path):
                os.fsync(folder)
        finally:
            os.close(folder)


def printable(text: object) -> str:
    """Returns `text` on one line, with control characters and undecodable bytes escaped, fit for a message."""
    text = str(text)
    if text.isprintable():  # at once, where it is a megabyte
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)

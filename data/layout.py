"""Brings a downloaded data set into the folders that the configs name, without a second copy where links work.

What the `prepare.py` of each data set shares. They run from the root of the repository, where the configs' paths start:

    python -m data.camvid.prepare ~/Downloads/CamVid
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class LayoutError(Exception):
    """A source that does not look as the data set's README says."""


def run(place: Callable[[Path], None], description: str | None, *, archives: bool = False) -> None:
    """Calls `place` with the folder that the command line names; a fault ends the command with one line and code 3.

    Args:
        place: fills the folders of a data set.
        description: for `--help`.
        archives: whether `place` takes an archive, too, or a folder of them.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    copy = "copy of the data set" if archives else "unpacked copy of the data set"
    parser.add_argument("source", type=Path, metavar="SOURCE", help=f"your {copy}")
    source = parser.parse_args().source.expanduser().resolve()
    try:
        if not source.is_dir() and not (archives and source.is_file()):
            raise LayoutError(f"{source}: no such folder; give your {copy}")
        place(source)
    except LayoutError as error:
        parser.exit(3, f"error: {error}\n")


def pictures(folder: Path, *, expected: int | None = None) -> list[Path]:
    """Returns the pictures in a folder, sorted.

    Raises:
        LayoutError: the folder is missing or empty, or does not hold `expected` of them.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found or expected not in (None, len(found)):
        raise LayoutError(
            f"{folder}: {len(found)} pictures, expected {expected or 'some'}; see the README beside prepare.py"
        )
    return found


def fresh_folder(folder: Path) -> Path:
    """Returns `folder`, made if missing; a link to another folder is replaced, so that nothing is written there."""
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def link(files: Sequence[Path], folder: Path, name: Callable[[Path], str] = lambda path: path.name) -> None:
    """Fills `folder` with links to `files`, with copies where the system has no links, and says so.

    Files of the same names are replaced; what else is in the folder stays.

    Args:
        files: the pictures.
        folder: made if missing.
        name: what each is called there.
    """
    fresh_folder(folder)
    for path in files:
        target = folder / name(path)
        target.unlink(missing_ok=True)
        try:
            target.symlink_to(path)
        except OSError:  # Windows without the privilege
            shutil.copyfile(path, target)
    print(f"{folder}: {len(files)} files")

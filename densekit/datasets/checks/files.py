"""Which files a folder gives a data set, and what stands in the way of some of them."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from densekit.datasets.checks.result import CheckResult
from densekit.datasets.lists import common_root, is_list, read_list
from densekit.errors import DataError
from densekit.files import printable
from densekit.image import SUFFIXES

# Pictures and arrays that densekit does not read: in a folder of pictures they are there by mistake or forgotten.
OTHER_FORMATS = re.compile(
    r"\.(gif|jfif|jp2|j2k|jxl|hei[cf]|avif|svg|p[pgbn]m|tga|exr|hdr|dng|cr2|nef|arw|psd|np[yz]|mat|nii|dcm|h5|pdf)"
)


def list_folders(folders: Sequence[str | Path], result: CheckResult) -> list[tuple[Path, list[Path]]]:
    """Returns (folder or list, its pictures), sorted; each folder once, however often it is named.

    The pictures are those that training finds, in a folder and below, less what is no file at all.
    """
    found: dict[Path, tuple[Path, list[Path]]] = {}
    for name in folders:
        folder = Path(name)
        key = Path(os.path.abspath(folder))  # noqa: PTH100  resolve() fails on loops of links
        if key not in found:
            found[key] = (folder, sorted(_pictures(folder, result)))
    return list(found.values())


def _pictures(folder: Path, result: CheckResult) -> Iterator[Path]:
    if is_list(folder):
        try:
            yield from dict.fromkeys(read_list(folder))
        except DataError as error:
            result.error("list", folder, str(error).removeprefix(f"{printable(folder)}: "), "mend the list")
        return
    if not folder.is_dir():
        result.error("missing-folder", folder, "no such folder", "give one that holds pictures")
        return

    def note(error: OSError) -> None:
        result.error(
            "unreadable-folder", Path(error.filename), f"cannot be read ({error.strerror})", "allow reading it"
        )

    count, lower = 0, defaultdict[str, list[Path]](list)
    for root, folders, files in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(root, name).is_symlink():
                _note_folder_link(Path(root, name), result)
        for name in sorted(files):
            path = Path(root, name)
            if not name.startswith(".") and _is_usable(path, result):
                lower[str(path.relative_to(folder)).lower()].append(path)
                count += 1
                yield path
    if not count:
        result.error(
            "empty-folder", folder, "no pictures (png, jpg, tif, webp, bmp) in this folder", "give one that holds some"
        )
    for same in lower.values():
        for path in same[1:]:
            result.warn(
                "case",
                path,
                f"differs from {printable(same[0].name)} by upper and lower case alone",
                "rename one of the two: on Windows and macOS they are one file",
            )


def _note_folder_link(path: Path, result: CheckResult) -> None:
    target = path.resolve()
    what = "a link to a folder around itself" if target in path.absolute().parents else "a link to a folder"
    result.warn("folder-link", path, f"{what}, which is not followed", "name its target as a folder of its own")


def _is_usable(path: Path, result: CheckResult) -> bool:
    """Returns whether a path is a file with the suffix of a picture; notes what pretends to be one."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        if OTHER_FORMATS.fullmatch(suffix):
            result.warn("other-format", path, f"a {suffix} file, which is not read", "convert it to PNG")
        return False
    try:
        status = path.stat()
    except OSError as error:
        what = "a link that leads nowhere" if path.is_symlink() else "cannot be read"
        result.error("broken-link", path, f"{what} ({error.strerror})", "copy the file here, or remove the link")
        return False
    if not stat.S_ISREG(status.st_mode):
        result.error("not-a-file", path, "a pipe or device; expected an image file", "remove it")
        return False
    return True


def by_stem(folder: Path, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the pictures of a folder or list by their path below it, less the suffix: what pairs are made by."""
    root = common_root(paths) if paths and is_list(folder) else folder
    return by_name([path.relative_to(root).with_suffix("").as_posix() for path in paths], paths)


def by_name(names: Sequence[str], paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the pictures of each name."""
    found = defaultdict[str, list[Path]](list)
    for name, path in zip(names, paths, strict=True):
        found[name].append(path)
    return found


def note_same_stem(paths: Sequence[Path], what: str, severity: str, result: CheckResult) -> None:
    """Notes files that differ by their suffix alone, as a.png and a.jpg."""
    for path in paths[1:]:
        (result.error if severity == "error" else result.warn)(
            "same-stem",
            path,
            f"{printable(paths[0].name)} has the same name up to the suffix",
            f"remove one of the two {what}",
        )

"""Downloaded archives: unpacked once beside the data set's other files, never outside, never by halves."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from data.layout import LayoutError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, size, and what opens it


def is_archive(path: Path) -> bool:
    """Says whether a file is an archive, by its name."""
    return path.is_file() and path.name.lower().endswith(ARCHIVES)


def unpack(archive: Path, folder: Path) -> Path:
    """Returns `folder`/<name of the archive>, with all its files; what was unpacked before is not unpacked again.

    Raises:
        LayoutError: it is damaged, does not fit on the disk, or has a file that is not plain or would lie elsewhere.
    """
    target = folder / archive.name
    if target.is_dir():
        return target
    partial = folder / f"{archive.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    print(f"unpacking {archive} into {target}")
    try:
        with _members(archive) as members:
            _check(archive, members, shutil.disk_usage(partial).free)
            for name, _, opened in members:
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened() as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise LayoutError(
            f"{archive}: cannot be unpacked: {error}; download it again, or unpack it yourself"
        ) from error
    partial.rename(target)
    return target


@contextmanager
def _members(archive: Path) -> Iterator[list[Member]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as package:
            yield [_zipped(archive, package, info) for info in package.infolist() if not info.is_dir()]
    else:
        with tarfile.open(archive) as package:
            yield [_tarred(archive, package, info) for info in package if not info.isdir()]


def _zipped(archive: Path, package: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise LayoutError(f"{archive}: {info.filename!r} in it is no plain file; nothing was unpacked")
    return info.filename, info.file_size, lambda: package.open(info)


def _tarred(archive: Path, package: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    opened = package.extractfile(info) if info.isreg() else None
    if opened is None:
        raise LayoutError(f"{archive}: {info.name!r} in it is no plain file; nothing was unpacked")
    return info.name, info.size, lambda: opened


def _check(archive: Path, members: list[Member], free: int) -> None:
    for name, _, _ in members:
        parts = PurePosixPath(name).parts
        if (
            not parts
            or ".." in parts
            or PurePosixPath(name).is_absolute()
            or PureWindowsPath(name).drive
            or "\\" in name
        ):
            raise LayoutError(f"{archive}: {name!r} in it would lie outside of its folder; nothing was unpacked")
    needed = sum(size for _, size, _ in members)
    if needed > free:
        raise LayoutError(f"{archive}: needs {needed / 2**30:.1f} GiB of disk, but {free / 2**30:.1f} GiB are free")

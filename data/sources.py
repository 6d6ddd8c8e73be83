"""Where in somebody's copy of a data set its folders lie: unpacked or in archives, as deep as people leave them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data.archives import is_archive, unpack
from data.layout import LayoutError, pictures


class Source:
    """A copy of a data set: a folder, an archive, or a folder of archives.

    Args:
        path: of it.
        store: where archives are unpacked.

    Raises:
        LayoutError: it is neither.
    """

    def __init__(self, path: Path, store: Path) -> None:
        if not path.is_dir() and not is_archive(path):
            raise LayoutError(f"{path}: neither a folder nor an archive (zip, tar); give your copy of the data set")
        self.path = path
        self.store = store

    def find(self, names: Sequence[str], archives: Sequence[str] = ()) -> Path | None:
        """Returns the first folder there is, or None.

        Args:
            names: such as "DIV2K_train_HR": in the source or its only folder, or the source itself.
            archives: patterns of those in the source that may hold it; they are unpacked if nothing else does.
        """
        if is_archive(self.path):
            return _first(unpack(self.path, self.store), names)
        found = _first(self.path, names)
        for archive in sorted({path for pattern in archives for path in self.path.glob(pattern) if is_archive(path)}):
            found = found or _first(unpack(archive, self.store), names)
        return found

    def need(self, names: Sequence[str], archives: Sequence[str] = ()) -> Path:
        """Returns the first folder there is.

        Raises:
            LayoutError: there is none.
        """
        found = self.find(names, archives)
        if found is None:
            packed = f", nor an archive {' or '.join(archives)} with it" if archives and self.path.is_dir() else ""
            raise LayoutError(f"{self.path}: holds no folder {names[0]}{packed}; see the README beside prepare.py")
        return found

    def root(self) -> Path:
        """Returns the folder itself, or what an archive holds."""
        if self.path.is_dir():
            return self.path
        unpacked = unpack(self.path, self.store)
        return next(iter(_only_folder(unpacked)), unpacked)


def _first(root: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        parts = Path(name).parts
        if root.parts[-len(parts) :] == parts:
            return root
        for place in (root, *_only_folder(root)):
            if (place / name).is_dir():
                return place / name
    return None


def _only_folder(root: Path) -> list[Path]:
    folders = [path for path in root.iterdir() if path.is_dir() and path.name != "__MACOSX"]
    return folders if len(folders) == 1 else []


def find_test_set(source: Source, names: Sequence[str], count: int) -> list[Path]:
    """Returns the high-resolution pictures of a test set of super-resolution.

    Where some of the pictures have names that end in _HR, these are taken.

    Args:
        source: with the pictures, or with them in HR, <name>/HR, <name>_HR or image_SRF_4.
        names: of the set, "Set14".
        count: of its pictures.

    Raises:
        LayoutError: not found, or another number of them.
    """
    places = [place for name in names for place in (f"{name}/HR", f"{name}_HR", f"{name}/image_SRF_4", name)]
    archives = [f"{name}{end}" for name in names for end in (".*", "_HR.*")]
    found = source.find(["HR", "image_SRF_4", *places], archives) or source.root()
    files = pictures(found)
    files = [file for file in files if file.stem.endswith("_HR")] or files
    if len(files) != count:
        raise LayoutError(f"{found}: {len(files)} pictures, expected {count}; see the README beside prepare.py")
    return files


def plain_name(path: Path) -> str:
    """Returns the name of a picture without _HR or _SRF_4_HR behind it."""
    return re.sub(r"(_SRF_\d)?_HR$", "", path.stem) + path.suffix

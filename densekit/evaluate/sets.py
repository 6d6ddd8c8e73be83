"""Which pictures an evaluation compares: test sets by name, and the partner of each picture in another folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from densekit.datasets.pictures import list_pictures
from densekit.errors import ConfigError, DataError, suggest
from densekit.files import printable


@dataclass(frozen=True)
class TestSet:
    """A test set of super-resolution.

    Attributes:
        name: as in papers.
        key: its folder is `data/<key>/images`.
        num_pictures: of the whole set, so that a part of it does not pass for it.
        others: further names people use.
    """

    __test__ = False  # pytest takes any class of such a name for tests

    name: str
    key: str
    num_pictures: int
    others: tuple[str, ...] = ()


SETS = (
    TestSet("Set5", "set5", 5),
    TestSet("Set14", "set14", 14),
    TestSet("B100", "b100", 100, ("bsd100", "bsds100")),
    TestSet("Urban100", "urban100", 100),
    TestSet("Manga109", "manga109", 109),
    TestSet("DIV2K val", "div2k_val", 100, ("div2k", "div2k_valid")),
)

# What tools put behind the name of a picture: baby_x2, 0801x4, baby_LRBI_x2, baby_HR, img_001_SRF_4_LR, photo_mask.
_ROLE = r"(?:lr|hr|sr)(?:bi|bicubic)?"
_ENDING = re.compile(rf"(?<=.)(?:[_-]{_ROLE})?(?:[_-]?x(\d)m?|[_-]srf[_-](\d))?(?:[_-]{_ROLE})?$", re.IGNORECASE)
_MASK = re.compile(r"(?<=.)[_-](?:mask|label|labels|gt)$", re.IGNORECASE)


def find_set(word: str | Path, root: str | Path = ".") -> tuple[str, Path]:
    """Returns the name of a set of pictures and its folder.

    Args:
        word: a folder, or the name of one of `SETS` in any case. A folder of that name goes first.
        root: holds `data/`, for names.

    Raises:
        DataError: a set that is not there, or neither a set nor a folder.
    """
    path = Path(word)
    if path.is_dir():
        return set_name(path), path
    asked = re.sub(r"[\s_-]+", "_", str(word).strip().lower())
    for known in SETS:
        if asked in (known.key, *known.others):
            return known.name, _prepared(known, Path(root))
    if "/" in str(word) or path.exists():
        raise DataError(f"{printable(word)}: no such folder; give one that holds pictures")
    names = [known.name for known in SETS]
    near = suggest(str(word), names)
    raise DataError(f"{printable(word)}: neither a folder nor a test set ({', '.join(names)}){near}")


def set_name(folder: Path) -> str:
    """Returns what to call the pictures in a folder: its name, with those above it where that says little."""
    parts = list(folder.resolve().parts)
    while len(parts) > 2 and parts[-1].lower() in ("images", "image", "hr", "masks", "mask"):
        parts.pop()
    name = "/".join(parts[-2:] if parts[-1].lower() in ("train", "val", "valid", "test") else parts[-1:])
    return next((known.name for known in SETS if name.lower() in (known.key, *known.others)), name)


def _prepared(known: TestSet, root: Path) -> Path:
    folder = root / "data" / known.key
    if (folder / "images").is_dir():
        return folder / "images"
    if (folder / "prepare.py").is_file():
        step = f"prepare it with: python -m data.{known.key}.prepare FOLDER (your downloaded copy)"
    else:
        step = "put its high-resolution pictures there, or give the folder they are in"
    raise DataError(f"{known.name}: no pictures in {printable(folder / 'images')}; {step}")


def is_part(name: str, count: int) -> int | None:
    """Returns the size of the known set `name` where `count` pictures are not all of it, else None."""
    sizes = {known.name: known.num_pictures for known in SETS}
    return sizes[name] if sizes.get(name, count) != count else None


def plain_name(path: Path) -> tuple[str, int | None]:
    """Returns a picture's name without what tools put behind it, and the scale that was among it."""
    match = _ENDING.search(path.stem)
    assert match is not None, "it also matches nothing"
    factor = match[1] or match[2]
    return path.stem[: match.start()].lower(), int(factor) if factor else None


class Partners:
    """The pictures of a folder, by the names of those they belong to.

    Equal names up to the suffix go first; then names are compared without what tools put behind them: `baby_x2.png` is
    the partner of `baby.png`, unless the scale is another one.

    Args:
        folder: with all below it.
        scale: pictures named for another one are no partners; None takes every one.
        masks: endings are those of masks, `_mask`, instead.

    Raises:
        DataError: no such folder, or no pictures in it.
    """

    def __init__(self, folder: str | Path, *, scale: int | None = None, masks: bool = False) -> None:
        self.folder = Path(folder)
        self._masks = masks
        self._exact: dict[str, list[Path]] = {}
        self._near: dict[str, list[Path]] = {}
        for path in list_pictures([self.folder]):
            place = path.relative_to(self.folder).parent
            self._exact.setdefault(str(place / path.stem), []).append(path)
            name, factor = self._plain(path)
            if scale is None or factor in (None, scale):
                self._near.setdefault(str(place / name), []).append(path)

    def find(self, path: Path, folder: Path) -> Path:
        """Returns the partner of `path`, a picture in `folder` or below.

        Raises:
            DataError: none, or several.
        """
        place = path.relative_to(folder).parent
        found = self._exact.get(str(place / path.stem)) or self._near.get(str(place / self._plain(path)[0])) or []
        if len(found) == 1:
            return found[0]
        if found:
            names = " and ".join(printable(other.name) for other in found[:2])
            raise DataError(f"both {names} in {printable(self.folder)} could belong to it; remove one")
        raise DataError(f"no picture of that name in {printable(self.folder)}; add one, or remove this")

    def _plain(self, path: Path) -> tuple[str, int | None]:
        return (_MASK.sub("", path.stem).lower(), None) if self._masks else plain_name(path)


def check_choice(kind: str, word: str, known: Sequence[str]) -> None:
    """Passes a word that is known.

    Raises:
        ConfigError: it is not.
    """
    if word not in known:
        raise ConfigError(f"{kind} {printable(word)!r}: expected one of {', '.join(known)}{suggest(word, known)}")

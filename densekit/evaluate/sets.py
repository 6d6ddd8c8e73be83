"""Which pictures an evaluation compares: test sets by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from densekit.errors import ConfigError, DataError, suggest
from densekit.files import printable


@dataclass(frozen=True)
class TestSet:
    """A test set of super-resolution.

    Attributes:
        name: as in papers.
        key: one word for it.
        num_pictures: of the whole set, so that a part of it does not pass for it.
        others: further names people use.
        folder: below `data/`; `<key>/images` if empty.
    """

    __test__ = False  # pytest takes any class of such a name for tests

    name: str
    key: str
    num_pictures: int
    others: tuple[str, ...] = ()
    folder: str = ""

    def below(self, root: Path) -> Path:
        """Returns where its `prepare.py` puts the high-resolution pictures."""
        return root / "data" / (self.folder or f"{self.key}/images")


SETS = (
    TestSet("Set5", "set5", 5),
    TestSet("Set14", "set14", 14),
    TestSet("B100", "b100", 100, ("bsd100", "bsds100")),
    TestSet("Urban100", "urban100", 100),
    TestSet("Manga109", "manga109", 109),
    TestSet("DIV2K val", "div2k_val", 100, ("div2k", "div2k_valid", "div2k/val"), "div2k/val/images"),
)


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
    folder = known.below(root)
    if folder.is_dir():
        return folder
    program = folder.relative_to(root / "data").parts[0]
    if (root / "data" / program / "prepare.py").is_file():
        step = f"prepare it with: python -m data.{program}.prepare FOLDER (your downloaded copy)"
    else:
        step = "put its high-resolution pictures there, or give the folder they are in"
    raise DataError(f"{known.name}: no pictures in {printable(folder)}; {step}")


def is_part(name: str, count: int) -> int | None:
    """Returns the size of the known set `name` where `count` pictures are not all of it, else None."""
    sizes = {known.name: known.num_pictures for known in SETS}
    return sizes[name] if sizes.get(name, count) != count else None


def check_choice(kind: str, word: str, known: Sequence[str]) -> None:
    """Passes a word that is known.

    Raises:
        ConfigError: it is not.
    """
    if word not in known:
        raise ConfigError(f"{kind} {printable(word)!r}: expected one of {', '.join(known)}{suggest(word, known)}")

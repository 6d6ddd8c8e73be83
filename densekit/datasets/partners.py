"""Which pictures belong together: the partner of each in another folder, by name; without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from densekit.datasets.pictures import read_rgb, rooted_pictures
from densekit.errors import DataError
from densekit.files import printable

SHOWN = 5  # faults that a message spells out

# What tools put behind the name of a picture: baby_x2, 0801x4, baby_LRBI_x2, baby_HR, img_001_SRF_4_LR, photo_mask.
_ROLE = r"(?:lr|hr|sr)(?:bi|bicubic)?"
ENDING = re.compile(rf"(?<=.)(?:[_-]{_ROLE})?(?:[_-]?x(\d)m?|[_-]srf[_-](\d))?(?:[_-]{_ROLE})?$", re.IGNORECASE)
_MASK = re.compile(r"(?<=.)[_-](?:mask|label|labels|gt)$", re.IGNORECASE)


def plain_name(path: Path) -> tuple[str, int | None]:
    """Returns a picture's name without what tools put behind it, and the scale that was among it."""
    match = ENDING.search(path.stem)
    assert match is not None, "it also matches nothing"
    factor = match[1] or match[2]
    return path.stem[: match.start()].lower(), int(factor) if factor else None


class Partners:
    """The pictures of a folder, by the names of those they belong to.

    Equal names up to the suffix go first; then names are compared without what tools put behind them: `baby_x2.png` is
    the partner of `baby.png`, unless the scale is another one.

    Args:
        folder: with all below it, or a .txt list.
        scale: pictures named for another one are no partners; None takes every one.
        masks: endings are those of masks, `_mask`, instead.

    Raises:
        DataError: no such folder, or no pictures in it.
    """

    def __init__(self, folder: str | Path, *, scale: int | None = None, masks: bool = False) -> None:
        self.folder: Path = Path(folder)
        self._masks = masks
        self._exact: dict[str, list[Path]] = {}
        self._near: dict[str, list[Path]] = {}
        root, paths = rooted_pictures(folder)
        for path in dict.fromkeys(paths):
            place = path.relative_to(root).parent
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


def pair_pictures(
    folders: Sequence[str | Path], lr: Sequence[str | Path] = (), *, scale: int = 0
) -> list[tuple[Path, ...]]:
    """Returns (picture,) for each high-resolution picture, or (picture, low-resolution picture).

    Args:
        folders: or lists; one named twice counts twice.
        lr: none, or for each of `folders` one with the low-resolution pictures: equal names up to the suffix, or up to
            what tools put behind them (`0001x2.png`, `img_001_SRF_2_LR.png`).
        scale: between the two; needed with `lr`.

    Raises:
        DataError: a folder is missing or empty, a picture has no partner or several, or sizes do not fit: all of these
            in one.
    """
    if not lr:
        return [(path,) for folder in folders for path in rooted_pictures(folder)[1]]
    pairs: list[tuple[Path, ...]] = []
    faults = []
    for high, low in zip(folders, lr, strict=True):
        partners = Partners(low, scale=scale)
        root, paths = rooted_pictures(high)
        owners: dict[Path, Path] = {}
        for path in paths:
            try:
                partner = partners.find(path, root)
            except DataError as error:
                faults.append(f"{printable(path)}: {error}")
                continue
            if owners.setdefault(partner, path) != path:
                faults.append(f"{printable(path)}: {printable(partner)} also belongs to {printable(owners[partner])}")
            elif fault := _size_fault_of_files(path, partner, scale):
                faults.append(fault)
            pairs.append((path, partner))
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError(f"{len(faults)} low-resolution pictures do not fit: {'; '.join(faults[:SHOWN])}{more}")
    return pairs


def size_fault(pair: Sequence[Path], shapes: Sequence[Sequence[int]], scale: int) -> str:
    """Returns what is wrong with the (height, width, ...) of a high and a low resolution, or an empty text.

    That of the high one, cut to a multiple at the bottom and right, must be `scale` times that of the low one.
    """
    (high, low), ((height, width, *_), (small_height, small_width, *_)) = pair, shapes
    if (height // scale, width // scale) == (small_height, small_width):
        return ""
    return (
        f"{printable(low)} is {small_width}x{small_height} but {printable(high)} is {width}x{height}: expected "
        f"{width // scale}x{height // scale} at scale {scale}"
    )


def _size_fault_of_files(high: Path, low: Path, scale: int) -> str:
    """Returns what `size_fault` does, by the headers of the files where these tell."""
    from densekit.datasets.checks.pictures import read_header  # here: the checks pair by this module's rule

    pair, headers = (high, low), (read_header(high), read_header(low))
    sizes = [header.size[::-1] if header.orientation > 4 else header.size for header in headers if header]
    if len(sizes) < 2:
        sizes = [read_rgb(path).shape[:2] for path in pair]
    fault = size_fault(pair, sizes, scale)
    if fault and not size_fault(pair, (sizes[0], sizes[1][::-1]), scale):  # a PNG may say at its end that it is turned
        fault = size_fault(pair, [read_rgb(path).shape for path in pair], scale)
    return fault

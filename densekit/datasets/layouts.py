"""Where images and their masks lie; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densekit.datasets.lists import common_root, is_list
from densekit.errors import DataError
from densekit.files import printable

PARTS = (("images", "masks"), ("image", "mask"))  # what the two folders in one are called


def find_parts(folder: str | Path) -> tuple[Path, Path]:
    """Returns the folder of images and the folder of masks that lie in one.

    Raises:
        DataError: they do not, under any of the names in `PARTS`.
    """
    if is_list(folder):
        raise DataError(f"{printable(folder)}: is a list of images; give one of their masks in data.masks, too")
    for images, masks in PARTS:
        if Path(folder, images).is_dir() and Path(folder, masks).is_dir():
            return Path(folder, images), Path(folder, masks)
    names = " nor ".join(f"{images}/ and {masks}/" for images, masks in PARTS)
    raise DataError(
        f"{printable(folder)}: holds neither {names}; give the folder that does, or one of images and one of masks"
    )


def names_of(
    images: str | Path, image_paths: Sequence[Path], masks: str | Path, mask_paths: Sequence[Path]
) -> tuple[list[str], list[str]]:
    """Returns the names by which images and masks belong together, without suffixes: equal ones do.

    Names start from the folder. Where one of the two is a list, they are those of the files alone if no two of a side
    are equal; otherwise they start from the deepest folder that holds all files of the list.

    Args:
        images: a folder or .txt list.
        image_paths: the pictures in it; one named twice counts once.
        masks: a folder or .txt list.
        mask_paths: the pictures in it.
    """
    sides = ((images, image_paths), (masks, mask_paths))
    if is_list(images) or is_list(masks):
        stems = [[path.stem for path in paths] for _, paths in sides]
        if all(len(set(names)) == len(set(paths)) for names, (_, paths) in zip(stems, sides, strict=True)):
            return stems[0], stems[1]
    names = [
        [path.relative_to(_root(source, paths)).with_suffix("").as_posix() for path in paths] for source, paths in sides
    ]
    return names[0], names[1]


def _root(source: str | Path, paths: Sequence[Path]) -> Path:
    return common_root(paths) if is_list(source) else Path(source)

"""Fills data/urban100/images with the 100 high-resolution pictures of Urban100.

SOURCE is the folder that holds them, one with them in a folder HR or image_SRF_4 (names ending in _HR), or an archive
of such a folder. The pictures in SelfExSR's image_SRF_2 have half the size, and are refused.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from data.layout import LayoutError, link, run
from data.sources import Source, find_test_set, plain_name

TARGET = Path(__file__).parent
SIDE = 1024  # pixels of the longer side of most of them


def place(source: Path) -> None:
    """Links the pictures; the low-resolution ones are made from them."""
    files = find_test_set(Source(source, TARGET / "unpacked"), ["Urban100"], 100)
    largest = max(map(longer_side, files))
    if largest < SIDE:
        raise LayoutError(
            f"{files[0].parent}: no picture has more than {largest} pixels a side, but Urban100 has {SIDE}: "
            "these are the halved ones of image_SRF_2; give image_SRF_4"
        )
    link(files, TARGET / "images", plain_name)


def longer_side(path: Path) -> int:
    """Returns it in pixels."""
    with Image.open(path) as picture:
        return max(picture.size)


if __name__ == "__main__":
    run(place, __doc__, archives=True)

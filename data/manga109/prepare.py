"""Fills data/manga109/images with the 109 high-resolution pages of Manga109's test set for super-resolution.

SOURCE is the folder that holds them, one with them in a folder HR, or an archive of such a folder.
"""

from __future__ import annotations

from pathlib import Path

from data.layout import link, run
from data.sources import Source, find_test_set, plain_name

TARGET = Path(__file__).parent


def place(source: Path) -> None:
    """Links the pages; the low-resolution ones are made from them."""
    files = find_test_set(Source(source, TARGET / "unpacked"), ["Manga109"], 109)
    link(files, TARGET / "images", plain_name)


if __name__ == "__main__":
    run(place, __doc__, archives=True)

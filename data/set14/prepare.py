"""Fills data/set14/images with the fourteen high-resolution pictures of Set14.

SOURCE is the folder that holds them, one with them in a folder HR or image_SRF_4 (names ending in _HR), or an archive
of such a folder.
"""

from __future__ import annotations

from pathlib import Path

from data.layout import link, run
from data.sources import Source, find_test_set, plain_name

TARGET = Path(__file__).parent


def place(source: Path) -> None:
    """Links the pictures; the low-resolution ones are made from them."""
    files = find_test_set(Source(source, TARGET / "unpacked"), ["Set14"], 14)
    link(files, TARGET / "images", plain_name)


if __name__ == "__main__":
    run(place, __doc__, archives=True)

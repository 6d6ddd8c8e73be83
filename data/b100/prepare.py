"""Fills data/b100/images with the 100 high-resolution pictures of B100 (BSD100).

SOURCE is the folder that holds them, one with them in a folder HR or image_SRF_4 (names ending in _HR), or an archive
of such a folder. BSDS500 will do as well: its 100 validation pictures are B100.
"""

from __future__ import annotations

from pathlib import Path

from data.layout import link, pictures, run
from data.sources import Source, find_test_set, plain_name

TARGET = Path(__file__).parent
BSDS500 = ["BSDS500/data/images/val", "BSR/BSDS500/data/images/val", "data/images/val", "images/val"]


def place(source: Path) -> None:
    """Links the pictures; the low-resolution ones are made from them."""
    copy = Source(source, TARGET / "unpacked")
    folder = copy.find(BSDS500, ["BSR_bsds500.*", "BSDS500.*"])
    files = pictures(folder, expected=100) if folder else find_test_set(copy, ["B100", "BSD100", "BSDS100"], 100)
    link(files, TARGET / "images", plain_name)


if __name__ == "__main__":
    run(place, __doc__, archives=True)

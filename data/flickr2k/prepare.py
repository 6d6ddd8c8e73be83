"""Fills data/flickr2k/train/{images,x2,x3,x4} from Flickr2K.

SOURCE is Flickr2K.tar, or the folder with what it holds: Flickr2K_HR and, if it is there, Flickr2K_LR_bicubic.
"""

from __future__ import annotations

from pathlib import Path

from data.layout import link, pictures, run
from data.sources import Source

TARGET = Path(__file__).parent
COUNT = 2650


def place(source: Path) -> None:
    """Links the pictures and their bicubic reductions."""
    copy, folder = Source(source, TARGET / "unpacked"), TARGET / "train"
    archives = ["Flickr2K.*"]
    link(pictures(copy.need(["Flickr2K_HR"], archives), expected=COUNT), folder / "images")
    for scale in (2, 3, 4):
        low = copy.find([f"Flickr2K_LR_bicubic/X{scale}"], archives)
        if low is None:
            print(f"{folder / f'x{scale}'}: not in {source}, left out; low resolution can be made from images")
        else:
            link(pictures(low, expected=COUNT), folder / f"x{scale}")


if __name__ == "__main__":
    run(place, __doc__, archives=True)

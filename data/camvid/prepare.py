"""Fills data/camvid/{train,val}/{images,masks} from SegNet's edition of CamVid.

SOURCE is its folder CamVid, which holds train, trainannot, val and valannot (360x480, 11 classes, void 11).
"""

from __future__ import annotations

from pathlib import Path

from data.layout import link, pictures, run

TARGET = Path(__file__).parent


def place(source: Path) -> None:
    """Links images and masks of both splits."""
    for split, count in (("train", 367), ("val", 101)):
        link(pictures(source / split, expected=count), TARGET / split / "images")
        link(pictures(source / f"{split}annot", expected=count), TARGET / split / "masks")


if __name__ == "__main__":
    run(place, __doc__)

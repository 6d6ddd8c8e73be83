"""Fills data/voc/{train,val}/{images,masks} from the segmentation part of Pascal VOC 2012.

SOURCE is VOCtrainval_11-May-2012.tar, the folder VOCdevkit in it, or VOC2012 in that.
"""

from __future__ import annotations

from pathlib import Path

from data.layout import LayoutError, link, run
from data.sources import Source

TARGET = Path(__file__).parent
COUNTS = {"train": 1464, "val": 1449}
MASKS = "SegmentationClass"


def place(source: Path) -> None:
    """Links images and masks of the two lists; the masks are palette pictures, whose indexes are the classes."""
    copy = Source(source, TARGET / "unpacked")
    names = [f"VOCdevkit/VOC2012/{MASKS}", f"VOC2012/{MASKS}", MASKS]
    root = copy.need(names, ["VOCtrainval_11-May-2012.*"]).parent
    for split, count in COUNTS.items():
        listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        stems = listed.read_text().split() if listed.is_file() else []
        if len(stems) != count:
            raise LayoutError(f"{listed}: {len(stems)} names, expected {count}; see the README beside prepare.py")
        images = [root / "JPEGImages" / f"{stem}.jpg" for stem in stems]
        masks = [root / MASKS / f"{stem}.png" for stem in stems]
        missing = [path for path in (*images, *masks) if not path.is_file()]
        if missing:
            raise LayoutError(f"{missing[0]}: missing, and {len(missing) - 1} more of {listed.name}; unpack it again")
        link(images, TARGET / split / "images")
        link(masks, TARGET / split / "masks")


if __name__ == "__main__":
    run(place, __doc__, archives=True)

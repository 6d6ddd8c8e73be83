"""Fills data/div2k/{train,val}/{images,x2,x3,x4} from DIV2K.

SOURCE is the folder with its archives as they are downloaded (DIV2K_train_HR.zip, DIV2K_valid_HR.zip,
DIV2K_train_LR_bicubic_X2.zip, ...), or with what they hold, unpacked. Low resolution is taken where it is there.
"""

from __future__ import annotations

from pathlib import Path

from data.layout import link, pictures, run
from data.sources import Source

TARGET = Path(__file__).parent
COUNTS = {"train": 800, "valid": 100}


def place(source: Path) -> None:
    """Links the pictures of both splits, and their bicubic reductions."""
    copy = Source(source, TARGET / "unpacked")
    folders = {split: copy.need([f"DIV2K_{split}_HR"], [f"DIV2K_{split}_HR.*"]) for split in COUNTS}
    for split, count in COUNTS.items():
        folder = TARGET / {"valid": "val"}.get(split, split)
        link(pictures(folders[split], expected=count), folder / "images")
        for scale in (2, 3, 4):
            low = copy.find([f"DIV2K_{split}_LR_bicubic/X{scale}"], [f"DIV2K_{split}_LR_bicubic_X{scale}.*"])
            if low is None:
                print(f"{folder / f'x{scale}'}: not in {source}, left out; low resolution can be made from images")
            else:
                link(pictures(low, expected=count), folder / f"x{scale}")


if __name__ == "__main__":
    run(place, __doc__, archives=True)

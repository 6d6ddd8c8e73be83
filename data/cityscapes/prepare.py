"""Fills data/cityscapes/{train,val}/{images,masks} from Cityscapes, finely annotated, 19 classes.

SOURCE is the folder with leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or with leftImg8bit and gtFine. Of
the masks *_labelTrainIds.png are linked where they are there; else they are made from *_labelIds.png: the 19 classes
that count are numbered from 0, all other ids become 255, void.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data.layout import LayoutError, fresh_folder, link, run
from data.sources import Source
from densekit.metrics.seg_protocols import CITYSCAPES

TARGET = Path(__file__).parent
COUNTS = {"train": 2975, "val": 500}
IMAGE, TRAIN_IDS, IDS = "_leftImg8bit.png", "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"


def place(source: Path) -> None:
    """Links images and links or makes masks; both are named by city, sequence and frame."""
    copy = Source(source, TARGET / "unpacked")
    images = copy.need(["leftImg8bit"], ["leftImg8bit_trainvaltest.*"])
    truth = copy.need(["gtFine"], ["gtFine_trainvaltest.*", "gtFine.*"])
    for split, count in COUNTS.items():
        paths = sorted((images / split).glob(f"*/*{IMAGE}"))
        if len(paths) != count:
            raise LayoutError(
                f"{images / split}: {len(paths)} images, expected {count}; see the README beside prepare.py"
            )
        frames = [path.relative_to(images).as_posix().removesuffix(IMAGE) for path in paths]  # train/ulm/ulm_0001_0002
        ready = [truth / f"{frame}{TRAIN_IDS}" for frame in frames]
        raw = [truth / f"{frame}{IDS}" for frame in frames]
        masks = ready if all(path.is_file() for path in ready) else raw
        missing = [path for path in masks if not path.is_file()]
        if missing:
            raise LayoutError(
                f"{missing[0]}: missing, and {len(missing) - 1} more masks of {split}; unpack gtFine again"
            )
        link(paths, TARGET / split / "images", lambda path: path.name.removesuffix(IMAGE) + ".png")
        if masks is ready:
            link(masks, TARGET / split / "masks", lambda path: path.name.removesuffix(TRAIN_IDS) + ".png")
        else:
            number(masks, TARGET / split / "masks")


def number(masks: list[Path], folder: Path) -> None:
    """Writes masks of train ids, made from those of ids."""
    table = np.full(256, 255, np.uint8)
    table[list(CITYSCAPES.values())] = range(len(CITYSCAPES))
    fresh_folder(folder)
    for path in masks:
        with Image.open(path) as mask:
            ids = np.asarray(mask)
        target = folder / (path.name.removesuffix(IDS) + ".png")
        target.unlink(missing_ok=True)  # a link: what it points to stays as it is
        Image.fromarray(table[ids]).save(target)
    print(f"{folder}: {len(masks)} files")


if __name__ == "__main__":
    run(place, __doc__, archives=True)

"""Fills data/nuclei/{train,val}/{images,masks} from the Data Science Bowl 2018 (stage 1, corrected masks).

SOURCE is the folder stage1_train, with ID/images/ID.png and ID/masks/*.png (one nucleus a file) for each picture. The
160 pictures of split.json are taken. Their alpha is dropped, and the masks of their nuclei become one: 0 background,
1 nucleus.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from data.layout import LayoutError, fresh_folder, pictures, run

TARGET = Path(__file__).parent


def place(source: Path) -> None:
    """Writes an image and a mask for each picture of the split, named by the first 12 digits of its id."""
    split = json.loads((TARGET / "split.json").read_text())
    samples = {path.name[:12]: path for path in source.iterdir() if path.is_dir()}
    missing = [name for names in split.values() for name in names if name not in samples]
    if missing:
        raise LayoutError(f"{source}: lacks the picture {missing[0]}... ({len(missing)} in all); give stage1_train")
    for part, names in split.items():
        images, masks = fresh_folder(TARGET / part / "images"), fresh_folder(TARGET / part / "masks")
        for name in names:
            with Image.open(pictures(samples[name] / "images", expected=1)[0]) as image:
                image.convert("RGB").save(images / f"{name}.png")
                nuclei = np.zeros((image.height, image.width), bool)
            for path in pictures(samples[name] / "masks"):
                with Image.open(path) as mask:
                    nuclei |= np.asarray(mask.convert("L")) > 0
            Image.fromarray(nuclei).save(masks / f"{name}.png")
        print(f"{TARGET / part}: {len(names)} images with masks")


if __name__ == "__main__":
    run(place, __doc__)

"""Fills data/bsds400/images with the 400 training and test pictures of BSDS500.

SOURCE is the unpacked BSDS500, its folder images (train, test, val), or a folder with the 400 pictures themselves.
"""

from __future__ import annotations

from pathlib import Path

from data.layout import link, pictures, run

TARGET = Path(__file__).parent / "images"


def place(source: Path) -> None:
    """Links train and test; val stays out, for it is the test set BSD100."""
    roots = [source, source / "images", source / "data/images", source / "BSDS500/data/images"]
    root = next((root for root in roots if (root / "train").is_dir()), None)
    if root is None:
        link(pictures(source, expected=400), TARGET)
    else:
        link([*pictures(root / "train", expected=200), *pictures(root / "test", expected=200)], TARGET)


if __name__ == "__main__":
    run(place, __doc__)

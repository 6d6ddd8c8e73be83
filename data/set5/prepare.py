"""Fills data/set5/images with the five high-resolution pictures of Set5.

SOURCE is the folder that holds them, or one with them in a folder HR.
"""

from __future__ import annotations

from pathlib import Path

from data.layout import link, pictures, run

TARGET = Path(__file__).parent / "images"


def place(source: Path) -> None:
    """Links the pictures; the low-resolution ones are made from them."""
    link(pictures(source / "HR" if (source / "HR").is_dir() else source, expected=5), TARGET)


if __name__ == "__main__":
    run(place, __doc__)

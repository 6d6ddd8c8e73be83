"""Fills data/t91/images with the 91 pictures of T91. SOURCE is the folder that holds them."""

from __future__ import annotations

from pathlib import Path

from data.layout import link, pictures, run

TARGET = Path(__file__).parent / "images"


def place(source: Path) -> None:
    """Links the pictures."""
    link(pictures(source, expected=91), TARGET)


if __name__ == "__main__":
    run(place, __doc__)

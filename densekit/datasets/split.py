"""Validation pictures taken from the training ones by rule, so that no list has to be kept; without torch.

The names of the files, without folder and suffix, are ranked by their SHA-256, and the lowest ones validate. The choice
depends on nothing but the names: it is the same on every machine, and whatever the order of the files. A picture that
is added moves at most one other from one side to the other. Files of one name stay together, wherever they lie.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from densekit.errors import DataError

Item = tuple[Path, ...]  # the files of one picture; the first one's name counts


def split_by_name(items: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """Returns (train, val), each in the order of the items.

    Validation gets `share` of the names, rounded up, but at least one, and leaves at least one to train on.

    Args:
        items: (picture, ...) or (picture, mask).
        share: of validation, 0 to 1.

    Raises:
        DataError: there are not two names.
    """
    names = sorted({item[0].stem for item in items}, key=_rank)
    if len(names) < 2:
        raise DataError(
            f"data.val_share={share}: found {len(items)} pictures of {len(names)} names, but it needs two: one to "
            "train on and one to validate on"
        )
    count = math.ceil(Fraction(str(share)) * len(names))  # in floating point 0.07 * 100 is more than 7
    chosen = set(names[: min(max(count, 1), len(names) - 1)])
    parts: tuple[list[Item], list[Item]] = ([], [])
    for item in items:
        parts[item[0].stem in chosen].append(item)
    return parts


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()

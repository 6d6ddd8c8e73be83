"""What both checks do: run over files with threads, and say what sizes and colours there are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from densekit.datasets.checks.pictures import Seen
from densekit.datasets.checks.result import CheckResult
from densekit.files import printable

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def each(function: Callable[[Item], Outcome], items: Iterable[Item], threads: int | None) -> list[Outcome]:
    """Returns what `function` makes of each item, in order; decoders run beside each other in `threads` threads."""
    count = threads or min(8, os.cpu_count() or 1)
    if count == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, items))


def describe_pictures(pictures: Sequence[Seen]) -> dict[str, Any]:
    """Returns facts: how many pictures, their smallest and largest sides as [width, height], how many are grey."""
    sizes = [seen.size for seen in pictures]
    facts: dict[str, Any] = {"pictures": len(pictures)}
    if sizes:
        facts["smallest"] = [min(width for _, width in sizes), min(height for height, _ in sizes)]
        facts["largest"] = [max(width for _, width in sizes), max(height for height, _ in sizes)]
        facts["sizes"] = len(set(sizes))
        facts["grey"] = sum(seen.channels == 1 for seen in pictures)
        facts["lossy"] = sum(bool(seen.header and seen.header.is_lossy) for seen in pictures)
    return facts


def note_pictures(pictures: Sequence[Seen], need: int, why: str, result: CheckResult) -> None:
    """Notes what each picture is by itself, pictures smaller than `need` pixels a side, and grey ones among colour.

    Args:
        pictures: of one split.
        need: smallest side that is of use; 0 for any.
        why: what needs that size and what happens to smaller ones.
        result: takes the faults.
    """
    for seen in pictures:
        result.add(seen.faults)
    small = [seen for seen in pictures if min(seen.size) < need]
    for seen in small:
        result.warn("small", seen.path, f"{size_text(seen.size)}, but {why}", "remove it, or lower the crop size")
    if small and len(small) == len(pictures):
        result.error("all-small", None, f"no picture is {need}x{need}, but {why}", "lower the crop size")
    kinds = Counter(seen.channels for seen in pictures)
    if len(kinds) > 1:
        rarer = min(kinds, key=lambda channels: kinds[channels])
        first = next(seen.path for seen in pictures if seen.channels == rarer)
        result.warn(
            "mixed-grey",
            first,
            f"{kinds[1]} of {len(pictures)} pictures are grey and the others in colour, as this one "
            f"is {'grey' if rarer == 1 else 'in colour'}",
            "nothing to do if it is meant: grey counts as colour with three equal channels",
        )


def size_text(size: tuple[int, int]) -> str:
    """Returns (height, width) as "width x height" is written."""
    return f"{size[1]}x{size[0]}"


def name_of(path: Path) -> str:
    """Returns a file's name, fit for a message about another file."""
    return printable(path.name)

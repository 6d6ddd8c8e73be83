"""Pictures that occur twice: pixel by pixel, or as near copies (another compression, size or brightness)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.checks.pictures import Seen
from densekit.datasets.checks.result import CheckResult
from densekit.files import printable

# Of 64 bits. Photographs compressed again (JPEG 50) or resized by 0.5 to 2 differ in 0 to 2, brighter ones in up to 6;
# crops are not found.
MAX_DISTANCE = 6
MIN_CORRELATION = 0.995  # of the thumbnails: turns down pictures whose few coarse shapes happen to agree
MAX_PICTURES = 50_000  # all pairs of them take seconds; the time grows with the square
_BLOCK = 2048


def find_duplicates(splits: dict[str, Sequence[Seen]], result: CheckResult) -> None:
    """Notes every picture that a split holds twice (a warning) or that two splits share (an error).

    A near copy across splits is a warning: frames of one film may be meant. `splits` are named as in messages.
    """
    seen = [(split, picture) for split, pictures in splits.items() for picture in pictures]
    groups = defaultdict[bytes, list[int]](list)
    for index, (_, picture) in enumerate(seen):
        groups[picture.digest].append(index)
    for members in groups.values():
        for index in members[1:]:
            _note(seen[members[0]], seen[index], "duplicate", "leak", "the same pixels as", result)
    if len(groups) > MAX_PICTURES:
        result.facts["near_copies"] = f"not looked for among more than {MAX_PICTURES} pictures"
        return
    first = [members[0] for members in groups.values()]
    told = set[int]()
    for a, b in sorted(near_pairs(np.array([seen[index][1].thumb for index in first]))):
        if b in told:  # one of a chain of frames: named once
            continue
        told.add(b)
        _note(seen[first[a]], seen[first[b]], "near-duplicate", "near-leak", "nearly the same picture as", result)


def _note(
    one: tuple[str, Seen], other: tuple[str, Seen], within: str, across: str, what: str, result: CheckResult
) -> None:
    (split, picture), (other_split, copy) = one, other
    message = f"{what} {printable(picture.path)}"
    if split == other_split:
        result.warn(within, copy.path, message, "remove one of the two, unless it is meant to count twice")
    elif within == "duplicate":
        step = f"remove it from {split}, or {other_split} says too much"
        result.error(across, copy.path, f"{message} in {split}", step)
    else:
        result.warn(across, copy.path, f"{message} in {split}", f"keep both in {split} or both in {other_split}")


def near_pairs(thumbs: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Returns the pairs (a, b), a < b, of thumbnails (N, 32, 32) that show the same; flat ones pair with none."""
    if len(thumbs) < 2:
        return []
    values = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1)
    values /= np.maximum(length, 1e-6)[:, None]
    marked = np.flatnonzero(length / values.shape[1] ** 0.5 > 2)  # levels; below it the hash is noise
    hashes = perceptual_hashes(thumbs[marked])
    pairs = []
    for start in range(0, len(marked), _BLOCK):
        block = hashes[start : start + _BLOCK]
        near = np.bitwise_count(block[:, None] ^ hashes[None, start:]) <= MAX_DISTANCE
        for row, column in zip(*np.nonzero(np.triu(near, 1)), strict=True):
            a, b = int(marked[start + row]), int(marked[start + column])
            if values[a] @ values[b] >= MIN_CORRELATION:
                pairs.append((a, b))
    return pairs


def perceptual_hashes(thumbs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Returns 64 bits for each thumbnail (N, 32, 32): which of its 8x8 lowest frequencies are above their median.

    Source: the DCT hash pHash (Zauner 2010), as in the package ImageHash.
    """
    side = thumbs.shape[-1]
    k, n = np.mgrid[:8, :side]
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * side)).astype(np.float32)
    low = (basis @ thumbs.astype(np.float32) @ basis.T).reshape(len(thumbs), 64)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)  # the first one is the mean, which says nothing
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]

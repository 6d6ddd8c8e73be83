"""What the labels of a data set mean: classes, void, colours; and how often each occurs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.checks.labels import Colored, Labels
from densekit.datasets.checks.pictures import Seen
from densekit.datasets.checks.result import CheckResult
from densekit.datasets.class_map import MAX_COLORS, ClassMap, Color, hex_color
from densekit.datasets.pictures import median_frequency_weights

INTERPOLATED = 0.15  # of label changes; CamVid's drawn masks have 0.00 to 0.04, scaled or JPEG ones 0.22 to 0.58
RARE = 20  # labels named in a message


@dataclass(frozen=True)
class Classes:
    """What is meant: number of classes (None: unknown), names and colours, the void label, and the map of colours."""

    number: int | None
    names: tuple[str, ...]
    palette: list[Any]
    void: int
    class_map: ClassMap

    def count(self, splits: Sequence[Split]) -> int:
        """Returns the number of classes: as given, or one more than the largest label but void."""
        if self.number:
            return self.number
        largest = [
            int(mask.values[mask.values != self.void].max(initial=-1)) for split in splits for mask in split.labels
        ]
        return max(largest, default=-1) + 1

    def name(self, label: int) -> str:
        return f"{label} ({self.names[label]})" if 0 <= label < len(self.names) else str(label)


@dataclass(eq=False)
class Split:
    """The readable pictures and masks of a split; `labels` are the masks that hold class numbers."""

    name: str
    pictures: list[Seen]
    masks: list[Labels | Colored]
    labels: list[Labels]


def judge_labels(splits: Sequence[Split], meant: Classes, result: CheckResult) -> None:
    """Notes masks whose labels are neither classes nor void, in colours, interpolated, constant or void alone."""
    masks = [mask for split in splits for mask in split.labels]
    colored = [mask for split in splits for mask in split.masks if isinstance(mask, Colored)]
    found = {int(value) for mask in masks for value in mask.values}
    number = meant.count(splits)
    wrong = {label for label in found if not 0 <= label < number and label != meant.void}
    is_binary = found == {0, 255} or (found == {255} and number <= 2)  # 255 in masks that hold nothing else but 0
    void_is_other = len(wrong) == 1 and meant.void not in found and wrong <= {0, number, 255, 254}
    for mask in masks:
        if is_binary and 255 in mask.values:
            as_void = "as void (ignore_index 255)" if meant.void == 255 else "as label 255, which is no class"
            message = f"holds 0 and 255 alone: 255 is read {as_void}, not as foreground"
            proposal = {"#000000": 0, "#ffffff": 1}
            step = f"write 1 for the foreground, or set data.class_map: {json.dumps(proposal)}"
            result.error("binary-255", mask.path, message, step)
            result.facts["proposed_class_map"] = proposal
            continue
        _judge_mask(mask, wrong, void_is_other, number, meant, result)
    _judge_palettes(masks, result)
    if colored:
        _judge_colors(colored, meant, result)


def _judge_mask(
    mask: Labels, wrong: set[int], void_is_other: bool, number: int, meant: Classes, result: CheckResult
) -> None:
    outside = [int(value) for value in mask.values if int(value) in wrong]
    pixels = int(mask.pixels[np.isin(mask.values, outside)].sum())
    expected = f"expected 0..{number - 1} and {meant.void} for void"
    if mask.between > INTERPOLATED:
        message = (
            f"labels look interpolated or compressed: {mask.between:.0%} of label changes pass through another label"
        )
        note = result.error if outside else result.warn
        note("lossy-labels", mask.path, message, "make it again from its source: nearest neighbour, PNG")
    elif void_is_other and outside:
        message = f"label {outside[0]} in {pixels} pixels, the only one in the data that is no class; {expected}"
        result.error("void-id", mask.path, message, f"if it means void, set ignore_index to {outside[0]}")
    elif outside:
        labels = ", ".join(map(str, outside[:RARE])) + (", ..." if len(outside) > RARE else "")
        many = f"labels {labels} ({len(outside)} of them)" if len(outside) > 1 else f"label {labels}"
        is_counted = len(mask.values) > number + 1 and outside == list(range(number, number + len(outside)))
        hint = "; they look like numbers of instances" if is_counted and len(outside) > 2 else ""
        step = (
            "write the class of each instance" if hint else "set the number of classes or ignore_index, or fix the mask"
        )
        result.error("label", mask.path, f"{many} in {pixels} pixels{hint}; {expected}", step)
    if mask.header and mask.header.is_lossy:
        result.warn("lossy-format", mask.path, "a mask compressed with losses", "make it again as PNG")
    inside = [value for value in mask.values if value != meant.void]
    if not inside:
        result.warn(
            "all-void", mask.path, f"every pixel is void ({meant.void})", "remove it: nothing is learnt from it"
        )
    elif len(inside) == 1 and len(mask.values) == 1 and number > 1:
        message = f"every pixel is label {meant.name(int(inside[0]))}"
        result.warn("constant", mask.path, message, "nothing to do if it is meant")


def _judge_palettes(masks: Sequence[Labels], result: CheckResult) -> None:
    """Notes a palette that gives the labels of a mask other colours than most masks do: its numbers may differ too."""
    colors = [(mask, tuple(mask.palette[3 * v : 3 * v + 3] for v in range(256))) for mask in masks if mask.palette]
    usual: dict[int, bytes] = {}
    for label in range(256):
        counts = Counter(table[label] for mask, table in colors if label in mask.values)
        if counts:
            usual[label] = counts.most_common(1)[0][0]
    for mask, table in colors:
        other = [int(v) for v in mask.values if table[int(v)] != usual[int(v)]]
        if other:
            message = (
                f"its palette shows label {other[0]} as {_hex(table[other[0]])}, most masks as {_hex(usual[other[0]])}"
            )
            step = "make sure that its numbers mean the same: a program may have sorted the colours anew"
            result.warn("palette-differs", mask.path, message, step)


def _judge_colors(masks: Sequence[Colored], meant: Classes, result: CheckResult) -> None:
    """Notes masks in colours, with the class map that would make numbers of them."""
    totals = Counter[Color]()
    for mask in masks:
        totals.update(mask.colors if len(mask.colors) <= MAX_COLORS else {})
    is_map = 0 < len(totals) <= MAX_COLORS
    if is_map:
        result.facts["proposed_class_map"] = _propose(totals, meant)
    for mask in masks:
        if not is_map or len(mask.colors) > MAX_COLORS:
            step = "it looks interpolated or compressed: make it again from its source"
        else:
            step = "set data.class_map to the proposed one, its numbers as you mean them"
        if mask.fault.kind == "unmapped-colour":
            result.error(mask.fault.kind, mask.path, mask.fault.message, step)
            continue
        count = f"more than {MAX_COLORS}" if len(mask.colors) > MAX_COLORS else str(len(mask.colors))
        shown = ", ".join(_hex(bytes(color)) for color in list(mask.colors)[:4])
        message = f"holds {count} colours ({shown}{', ...' if len(mask.colors) > 4 else ''}), expected class numbers"
        result.error("colour-mask", mask.path, message, step)


def _propose(totals: Counter[Color], meant: Classes) -> dict[str, int]:
    """Returns a class map of some colours: those of the config as they are, the others by falling number of pixels.

    The grey ones of a config without colours keep their value, but white beside black alone is class 1.
    """
    known = meant.class_map.colors or {hex_color((r, g, b)): label for label, (r, g, b) in enumerate(meant.palette)}
    first = max((label for label in known.values() if label != meant.void), default=-1) + 1
    if not known and all(r == g == b for r, g, b in totals):
        binary = set(totals) <= {(0, 0, 0), (255, 255, 255)}
        return {hex_color(color): min(color[0], 1) if binary else color[0] for color in sorted(totals)}
    order = sorted(totals, key=lambda color: (-totals[color], color))
    others = [color for color in map(hex_color, order) if color not in known]
    return {**known, **{color: first + place for place, color in enumerate(others)}}


def judge_splits(splits: Sequence[Split], meant: Classes, result: CheckResult) -> None:
    """Notes classes that a split never shows, and adds what each split holds to the facts."""
    number = meant.count(splits)
    result.facts |= {"num_classes": number, "num_classes_given": bool(meant.number), "ignore_index": meant.void}
    shown: dict[str, NDArray[np.int64]] = {}
    for split in splits:
        if not split.labels or number > 65_536:
            continue
        counts = count_classes(split.labels, number, meant.void)
        shown[split.name] = counts.own
        result.facts[split.name] |= counts.describe(meant)
    train, val = shown.get("train"), shown.get("val")
    for label in range(number if train is not None and number <= 256 else 0):
        name = meant.name(label)
        in_val = val is not None and val[label] > 0
        if train is not None and not train[label]:
            if in_val:
                message = f"class {name} occurs in val but never in train"
                result.warn("class-split", None, message, "move images with it to train")
            else:
                where = "train or val" if val is not None else "the masks"
                result.warn("unused-class", None, f"class {name} never occurs in {where}", "remove it, or add images")
        elif val is not None and not in_val:
            message = f"class {name} occurs in train but never in val: its score is undefined"
            result.warn("class-split", None, message, "move images with it to val")


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Pixels of each class, images with it and all pixels of those (void included); void and all pixels."""

    own: NDArray[np.int64]
    images: NDArray[np.int64]
    around: NDArray[np.int64]
    void: int
    total: int

    def describe(self, meant: Classes) -> dict[str, Any]:
        """Returns facts for JSON: a record for each class, and the share of void."""
        labelled, weights = max(int(self.own.sum()), 1), median_frequency_weights(self.own, self.around)
        records = [
            {
                "label": label,
                "name": meant.names[label] if label < len(meant.names) else "",
                "pixels": int(self.own[label]),
                "share": round(self.own[label] / labelled, 6),
                "images": int(self.images[label]),
                "median_frequency_weight": round(float(weights[label]), 4),
            }
            for label in range(len(self.own))
        ]
        return {
            "classes": records,
            "labelled_pixels": int(self.own.sum()),
            "void_pixels": self.void,
            "void_share": round(self.void / max(self.total, 1), 6),
        }


def count_classes(masks: Sequence[Labels], number: int, void: int) -> ClassCounts:
    """Returns how often each of the classes 0..number-1 occurs in masks."""
    own, images, around = (np.zeros(number, np.int64) for _ in range(3))
    void_pixels = total = 0
    for mask in masks:
        size = mask.size[0] * mask.size[1]
        total += size
        void_pixels += int(mask.pixels[mask.values == void].sum())
        inside = (mask.values >= 0) & (mask.values < number) & (mask.values != void)
        own[mask.values[inside]] += mask.pixels[inside]
        images[mask.values[inside]] += 1
        around[mask.values[inside]] += size
    return ClassCounts(own, images, around, void_pixels, total)


def _hex(color: bytes) -> str:
    return f"#{color.hex()}" if color else "nothing"

"""What folders hold to train on: where the pictures lie, what their masks mean, what a check finds; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from densekit.datasets.checks import CheckResult, check_seg, check_sr
from densekit.datasets.class_map import hex_color
from densekit.datasets.layouts import find_parts
from densekit.datasets.lists import is_list
from densekit.datasets.pictures import Pixels, list_pictures, read_rgb
from densekit.errors import DataError
from densekit.files import printable

VAL_SHARE = 0.2
SPLITS = (("train", "val"), ("train", "valid"), ("train", "validation"))  # of folders that hold both
MANY_CLASSES = 32  # more are doubted: each mask may count its objects
SPREAD = 3  # times as many numbers as there are labels: the numbers are grey levels, such as 0, 127 and 255
LOOKED_AT = 12  # pictures that decide whether a set is of fluorescence
DARK, COLOURFUL = 64, 24  # of 255: median brightness below, and spread of the channels above, which a picture is so
MAPPABLE = {"colour-mask", "binary-255"}  # faults that a class map may do away with


@dataclass
class Survey:
    """What there is to train on.

    Attributes:
        data: keys of the section `data` of a config.
        why: a comment to some of them.
        result: of the check, with its facts.
        pictures: the first folder of training pictures.
        num_classes: seg: with the background; sr: 0.
        is_fluorescence: seg: most pictures are dark and without colour.
    """

    data: dict[str, Any]
    result: CheckResult
    pictures: str
    why: dict[str, str] = field(default_factory=dict)
    num_classes: int = 0
    is_fluorescence: bool = False

    @property
    def train(self) -> dict[str, Any]:
        """The facts of the training pictures, those that will validate included."""
        facts: dict[str, Any] = self.result.facts["train"]
        return facts

    @property
    def shares(self) -> list[float]:
        """Each class's share of the labelled pixels."""
        return [record["share"] for record in self.train["classes"]]

    @property
    def has_validation(self) -> bool:
        return bool(self.data.get("val") or self.data.get("val_share"))


def survey_seg(
    folders: Sequence[str], *, val: Sequence[str] = (), classes: Sequence[str] = (), ignore_index: int | None = None
) -> Survey:
    """Returns what there is to train a segmentation on.

    Args:
        folders: each with images/ and masks/, or with train/ and val/ of that kind; or two, images and their masks.
        val: folders for validation, with images/ and masks/; if empty, a share of the others.
        classes: their names; if empty, numbers.
        ignore_index: label that means void; None takes 255.

    Raises:
        DataError: no images with masks there; or faults, which are in its `result` (see `Faulty`).
    """
    check_folders([*folders, *val])
    data = _find_masked(folders, val)
    void = 255 if ignore_index is None else ignore_index

    def check(class_map: dict[str, int]) -> CheckResult:
        largest = max((label for label in class_map.values() if label != void), default=0) + 1
        return check_seg(
            data["train"],
            data.get("masks", ()),
            val_images=data.get("val", ()),
            val_masks=data.get("val_masks", ()),
            num_classes=max(len(classes), 2) if classes else largest if class_map else None,
            classes=classes,
            class_map=class_map,
            ignore_index=void,
        )

    class_map: dict[str, int] = {}
    result = check(class_map)
    if proposed := result.facts.get("proposed_class_map") or _map_of_levels(result, classes):
        only_these = {fault.kind for fault in result.errors} <= MAPPABLE
        again = check(proposed) if only_these else result
        if not again.errors:
            result, class_map = again, proposed
    if result.errors:
        raise Faulty(result, "seg")
    images = data["train"] if data.get("masks") else [str(find_parts(folder)[0]) for folder in data["train"]]
    survey = Survey(data, result, images[0])
    _refuse_odd_classes(survey, classes)
    survey.num_classes = result.facts["num_classes"]
    if class_map:
        data["class_map"] = class_map
        survey.why["class_map"] = "a proposal: what each colour of the masks means; put the numbers as you mean them"
    data["classes"] = list(classes) or _names(survey.num_classes)
    if not classes:
        survey.why["classes"] = "write their names here, in the order of the class numbers"
    if void != 255:
        data["ignore_index"] = void
    survey.is_fluorescence = _is_fluorescence(list_pictures(images))
    _keep_some(survey)
    return survey


def survey_sr(folders: Sequence[str], *, val: Sequence[str] = (), scale: int) -> Survey:
    """Returns what there is to train a super-resolution on.

    Args:
        folders: of high-resolution pictures; or one with train/ and val/.
        val: folders for validation; if empty, a share of the others.
        scale: between low and high resolution.

    Raises:
        DataError: as `survey_seg`.
    """
    check_folders([*folders, *val])
    data: dict[str, Any] = {"train": list(folders)}
    if len(folders) == 1 and not val:
        for names in SPLITS:
            parts = [Path(folders[0], name) for name in names]
            if all(part.is_dir() for part in parts):
                data = {"train": [str(parts[0])], "val": [str(parts[1])]}
    if val:
        data["val"] = list(val)
    result = check_sr(data["train"], val=data.get("val", ()), scale=scale)
    if result.errors:
        raise Faulty(result, "sr")
    survey = Survey(data, result, data["train"][0])
    _keep_some(survey)
    return survey


class Faulty(DataError):
    """Data that must be mended first; `result` has every fault."""

    def __init__(self, result: CheckResult, task: str) -> None:
        number = len(result.errors)
        times = "once" if number == 1 else f"{number} times"
        super().__init__(f"the data is faulty, {times}; mend it first (densekit {task} check tells all, too)")
        self.result = result


def check_folders(folders: Sequence[str]) -> None:
    """Passes folders and lists that are there.

    Raises:
        DataError: one is not.
    """
    for folder in folders:
        if not Path(folder).is_dir() and not (is_list(folder) and Path(folder).is_file()):
            raise DataError(f"{printable(folder)}: no such folder; give one that holds pictures")


def _find_masked(folders: Sequence[str], val: Sequence[str]) -> dict[str, Any]:
    """Returns the keys train and masks, val and val_masks of folders.

    Raises:
        DataError: one holds no images with masks.
    """
    if len(folders) == 2 and not any(map(_has_parts, folders)):
        data: dict[str, Any] = {"train": [folders[0]], "masks": [folders[1]]}
        if val:
            parts = [find_parts(folder) for folder in val]
            data |= {"val": [str(images) for images, _ in parts], "val_masks": [str(masks) for _, masks in parts]}
        return data
    data = {"train": [], "val": []}
    for folder in folders:
        both = next((names for names in SPLITS if all(_has_parts(Path(folder, name)) for name in names)), None)
        if both and not val and not _has_parts(folder):
            data["train"].append(str(Path(folder, both[0])))
            data["val"].append(str(Path(folder, both[1])))
        else:
            find_parts(folder)
            data["train"].append(folder)
    data["val"] += val
    return {key: value for key, value in data.items() if value}


def _has_parts(folder: str | Path) -> bool:
    try:
        find_parts(folder)
    except DataError:
        return False
    return True


def _map_of_levels(result: CheckResult, classes: Sequence[str]) -> dict[str, int]:
    """Returns the class map of masks whose labels are grey levels, far apart and few; else an empty one."""
    records = result.facts.get("train", {}).get("classes", [])
    levels = [record["label"] for record in records if record["pixels"]]
    is_spread = len(levels) > 1 and len(records) >= SPREAD * len(levels) and len(records) <= 256
    if not is_spread or classes:
        return {}
    if result.facts["train"].get("void_pixels"):
        levels.append(255)
    return {hex_color((level, level, level)): number for number, level in enumerate(levels)}


def _refuse_odd_classes(survey: Survey, classes: Sequence[str]) -> None:
    """Passes masks that show two classes or more, and not the numbers of objects.

    Raises:
        DataError: they do not.
    """
    records, where = survey.train.get("classes", []), ", ".join(map(printable, survey.data["train"]))
    present = [record for record in records if record["pixels"]]
    if len(present) < 2:
        what = f"class {present[0]['label']} alone" if present else "void alone"
        raise DataError(f"{where}: the masks hold {what}; training needs two classes or more, background among them")
    images = [record["images"] for record in records[1:]]
    if len(records) > MANY_CLASSES and not classes and images == sorted(images, reverse=True):
        raise DataError(
            f"{where}: labels 0 to {len(records) - 1}, each in no more masks than the one before, look like numbers of "
            "objects; write the class of each object instead (1 for a single kind), or name all classes with --classes"
        )


def _names(number: int) -> list[str]:
    return ["background", "foreground"] if number == 2 else [f"class {label}" for label in range(number)]


def _keep_some(survey: Survey) -> None:
    """Lets a share of the pictures validate where no others do and there are two."""
    data, number = survey.data, survey.train["pictures"]
    if data.get("val"):
        return
    if number < 2:
        survey.why["train"] = "one picture alone: nothing validates, and no best.safetensors is chosen"
        return
    data["val_share"] = VAL_SHARE
    survey.why["val_share"] = "kept from training, chosen by a hash of the name; or give folders as val"


def _is_fluorescence(paths: Sequence[Path]) -> bool:
    """Says whether most of some pictures are dark and without colour, as those of bright cells on black are."""
    step = max(1, len(paths) // LOOKED_AT)
    chosen = [read_rgb(path) for path in paths[::step][:LOOKED_AT]]
    return sum(map(_is_dark, chosen)) * 2 > len(chosen)


def _is_dark(pixels: Pixels) -> bool:
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    return bool(np.median(pixels) < DARK and np.median(spread) < COLOURFUL)

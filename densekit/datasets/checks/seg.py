"""Every fault of segmentation data in one pass: images, masks, how they pair, and what the splits have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from densekit.datasets.checks.classes import Classes, Split, judge_labels, judge_splits
from densekit.datasets.checks.common import describe_pictures, each, name_of, note_pictures, size_text
from densekit.datasets.checks.duplicates import find_duplicates
from densekit.datasets.checks.files import by_name, list_folders, note_same_stem
from densekit.datasets.checks.labels import Colored, Labels, scan_mask
from densekit.datasets.checks.pictures import TURNS, Seen, look
from densekit.datasets.checks.result import CheckResult, Fault, refusal
from densekit.datasets.class_map import ClassMap
from densekit.datasets.layouts import find_parts, names_of
from densekit.datasets.split import split_by_name
from densekit.errors import ConfigError, DataError
from densekit.files import printable

Mask = Labels | Colored
Pair = tuple[Path, Path | None]


def check_seg(
    images: Sequence[str | Path],
    masks: Sequence[str | Path] = (),
    *,
    val_images: Sequence[str | Path] = (),
    val_masks: Sequence[str | Path] = (),
    num_classes: int | None = None,
    classes: Sequence[str] = (),
    palette: Sequence[Sequence[int]] = (),
    class_map: Mapping[str, int] | None = None,
    ignore_index: int = 255,
    val_share: float = 0.0,
    crop_size: int | None = None,
    threads: int | None = None,
) -> CheckResult:
    """Returns every fault of segmentation data, and facts about it; no file stops the check.

    Args:
        images: folders or .txt lists of training images; without `masks`, folders that hold images/ and masks/.
        masks: a folder of masks for each of `images`: equal names up to the suffix.
        val_images: folders of validation images.
        val_masks: as `masks`, for `val_images`.
        num_classes: labels are 0..num_classes-1 (2 for foreground and background); None takes `classes`, or else what
            the masks hold.
        classes: names of the classes.
        palette: colours of the classes, (R, G, B): what masks in colours are read by in the proposals.
        class_map: class of each colour, as data.class_map: masks are then read as colours.
        ignore_index: label that means void.
        val_share: share of the images that training keeps for validation, as data.val_share.
        crop_size: side of a training crop in pixels: smaller images are padded with void.
        threads: decoders beside each other; None: one a core, at most 8.

    Raises:
        ConfigError: not as many mask folders as image folders.
    """
    result = CheckResult()
    meant = Classes(
        num_classes or len(classes) or None,
        tuple(classes),
        [tuple(c) for c in palette],
        ignore_index,
        ClassMap(class_map or {}),
    )
    pairs = {"train": _find_pairs(images, masks, result)}
    if val_images:
        pairs["val"] = _find_pairs(val_images, val_masks, result)
    elif val_share:
        pairs = _share_out(pairs["train"], val_share, result)
    splits = [_look_at_split(name, part, meant.class_map, threads, result) for name, part in pairs.items()]
    for split in splits:
        need = crop_size or 0 if split.name == "train" else 0
        why = f"a crop of {crop_size} needs {crop_size}x{crop_size}; it is padded with void"
        small = CheckResult()
        note_pictures(split.pictures, need, why, small)
        result.add(fault for fault in small.faults if fault.kind != "all-small")  # padding makes them usable
        result.facts[split.name] = {**describe_pictures(split.pictures), "masks": len(split.masks)}
    judge_labels(splits, meant, result)
    judge_splits(splits, meant, result)
    find_duplicates({split.name: split.pictures for split in splits}, result)
    result.sort()
    return result


def _find_pairs(images: Sequence[str | Path], masks: Sequence[str | Path], result: CheckResult) -> list[Pair]:
    """Returns the (image, mask or None) paths of some folders; notes what has no partner or two."""
    if masks and len(masks) != len(images):
        raise ConfigError(
            f"found {len(masks)} mask folders for {len(images)} image folders; give one for each, or none"
        )
    folders = list(zip(map(Path, images), map(Path, masks), strict=True)) if masks else []
    for folder in images if not masks else ():
        try:
            folders.append(find_parts(folder))
        except DataError as error:
            result.add([refusal(Path(folder), error)])
    pairs: list[Pair] = []
    for image_folder, mask_folder in dict.fromkeys(folders):
        pairs += _pair_up(image_folder, mask_folder, result)
    return pairs


def _share_out(pairs: list[Pair], share: float, result: CheckResult) -> dict[str, list[Pair]]:
    """Returns the pairs that training keeps to train on and those it keeps for validation."""
    try:
        chosen = set(split_by_name([(image,) for image, _ in pairs], share)[1])
    except DataError as error:
        result.add([refusal(None, error)])
        return {"train": pairs}
    parts: dict[str, list[Pair]] = {"train": [], "val": []}
    for pair in pairs:
        parts["val" if (pair[0],) in chosen else "train"].append(pair)
    return parts


def _look_at_split(
    name: str, pairs: list[Pair], class_map: ClassMap, threads: int | None, result: CheckResult
) -> Split:
    """Returns the readable images and masks of a split; notes what does not fit its partner."""
    looks = each(look, [image for image, _ in pairs], threads)
    wanted = [mask for _, mask in pairs if mask]
    scans = dict(zip(wanted, each(partial(scan_mask, class_map=class_map), wanted, threads), strict=True))
    result.add(found for found in [*looks, *scans.values()] if isinstance(found, Fault))
    for (_, mask), found in zip(pairs, looks, strict=True):
        scan = scans.get(mask) if mask else None
        if scan is not None and not isinstance(scan, Fault) and not isinstance(found, Fault):
            _compare(found[0], scan, result)
    found_masks = [scan for scan in scans.values() if not isinstance(scan, Fault)]
    return Split(
        name,
        [found[0] for found in looks if not isinstance(found, Fault)],
        found_masks,
        [mask for mask in found_masks if isinstance(mask, Labels)],
    )


def _pair_up(image_folder: Path, mask_folder: Path, result: CheckResult) -> list[Pair]:
    """Returns (image, mask or None) paths of two folders; notes what has no partner or two."""
    ((_, images),), ((_, masks),) = list_folders([image_folder], result), list_folders([mask_folder], result)
    if not images or not masks:  # said already; that each file lacks a partner would say nothing new
        return [(path, None) for path in images]
    names, mask_names = names_of(image_folder, images, mask_folder, masks)
    left = by_name(mask_names, masks)
    lower = defaultdict[str, list[str]](list)
    for stem in left:
        lower[stem.lower()].append(stem)
    pairs: list[Pair] = []
    for stem, paths in by_name(names, images).items():
        partners = left.pop(stem, [])
        note_same_stem(paths, "images, or give it a mask of its own", "warning", result)
        note_same_stem(partners, "masks", "error", result)
        if not partners:
            near = [other for other in lower[stem.lower()] if other in left]
            step = (
                f"rename {name_of(left[near[0]][0])}, which differs by case" if near else "add it, or remove this one"
            )
            result.error("no-mask", paths[0], f"no mask of that name in {printable(mask_folder)}", step)
        pairs += [(path, partners[0] if partners else None) for path in paths]
    for paths in left.values():
        message = f"no image of that name in {printable(image_folder)}; the mask is not used"
        result.warn("no-image", paths[0], message, "add the image, or remove the mask")
    return pairs


def _compare(image: Seen, mask: Mask, result: CheckResult) -> None:
    """Notes a mask that does not lie on its image: another size, or turned by the EXIF of one of them alone."""
    header = mask.header if isinstance(mask, Labels) else None
    turn = image.header.orientation if image.header else 1
    mask_turn = header.orientation if header else 1
    stored = image.header.size if image.header else image.size
    mask_stored = header.size if header else mask.size
    name = name_of(image.path)
    if image.size == mask.size:
        is_unsure = turn != mask_turn and (stored == mask_stored)
        if is_unsure:  # square, or turned by 180 degrees: the sizes cannot tell
            message = f"its EXIF orientation is {mask_turn}, but that of {name} is {turn}: one may be turned"
            result.warn("orientation", mask.path, message, "store both upright, without the tag")
        return
    if turn != mask_turn and stored == mask_stored:
        whose = TURNS.get(turn if turn != 1 else mask_turn, "a mirror")
        message = f"lies on {name} as stored, but EXIF turns {'the image' if turn != 1 else 'the mask'} alone ({whose})"
        result.error("orientation", mask.path, message, "store both upright, without the tag")
        return
    message = f"is {size_text(mask.size)} but {name} is {size_text(image.size)}: expected the same size"
    turned = " (width and height are swapped)" if image.size == mask.size[::-1] else ""
    result.error("size", mask.path, message + turned, "make the mask again, or scale it without interpolation")

"""Every fault of super-resolution data in one pass: pictures, their low-resolution partners, and splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from densekit.datasets.checks.common import describe_pictures, each, name_of, note_pictures, size_text
from densekit.datasets.checks.duplicates import find_duplicates
from densekit.datasets.checks.files import by_stem, list_folders, note_same_stem
from densekit.datasets.checks.kernels import FLAT, Match, fitting_scales, match_kernel, orientation_of, shift_of
from densekit.datasets.checks.pictures import Seen, look
from densekit.datasets.checks.result import CheckResult, Fault
from densekit.datasets.pictures import Pixels, to_rgb
from densekit.errors import ConfigError
from densekit.files import printable

TURNED = 0.1  # gain in correlation that shows a picture is turned
UNRELATED = 0.5  # correlation below which two pictures do not show the same
_SCALE_SUFFIX = re.compile(r"[-_]?x[2-8]$")  # DIV2K: 0801x4.png belongs to 0801.png


def check_sr(
    hr: Sequence[str | Path],
    *,
    lr: Sequence[str | Path] = (),
    val: Sequence[str | Path] = (),
    scale: int | None = None,
    crop_size: int | None = None,
    threads: int | None = None,
) -> CheckResult:
    """Returns every fault of super-resolution data, and facts about it; no file stops the check.

    Args:
        hr: folders of high-resolution pictures.
        lr: folders of the low-resolution ones made from them, one for each of `hr`, or none; equal names up to the
            suffix, or up to x2, x3 ... at the end of the name.
        val: folders of validation pictures.
        scale: between low and high resolution; None takes that of most pairs.
        crop_size: side of a training crop in low-resolution pixels; with `scale` it says which pictures are too small.
        threads: decoders beside each other; None: one a core, at most 8.

    Raises:
        ConfigError: `lr` has not as many folders as `hr`.
    """
    if lr and len(lr) != len(hr):
        raise ConfigError(f"found {len(lr)} folders of LR for {len(hr)} of HR; give one for each, or none")
    result = CheckResult()
    jobs: list[tuple[Path, Path | None]] = []
    if lr:
        for hr_folder, lr_folder in zip(hr, lr, strict=True):
            jobs += _pair_up(hr_folder, lr_folder, result)
    else:
        for folder, paths in list_folders(hr, result):
            for same in by_stem(folder, paths).values():
                note_same_stem(same, "pictures", "warning", result)
            jobs += [(path, None) for path in paths]
    val_paths = [path for _, paths in list_folders(val, result) for path in paths]

    hint = ["benchmark"]  # the kernel of the pair before: mostly the one of the next pair too
    pairs = each(lambda job: _look_at_pair(job[0], job[1], scale, hint), jobs, threads)
    for pair in pairs:
        result.add(pair.faults)
    seen = [pair.hr for pair in pairs if pair.hr is not None]
    val_looks = each(look, val_paths, threads)
    result.add(found for found in val_looks if isinstance(found, Fault))
    val_seen = [found[0] for found in val_looks if not isinstance(found, Fault)]

    _judge_pairs(pairs, scale, result)
    need = (crop_size or 0) * (scale or result.facts.get("scale") or 1)
    why = f"a crop of {crop_size} at scale {need // (crop_size or 1)} needs {need}x{need}; it is left out"
    note_pictures(seen, need, why, result)
    note_pictures(val_seen, 0, "", result)
    find_duplicates({"train": seen, "val": val_seen}, result)
    result.facts["train"] = describe_pictures(seen)
    if val:
        result.facts["val"] = describe_pictures(val_seen)
    result.sort()
    return result


@dataclass(eq=False)
class _Pair:
    """What was seen of one high-resolution picture and, where there is one, its partner."""

    faults: list[Fault]
    hr: Seen | None = None
    lr: Seen | None = None
    scale: int | None = None
    match: Match | None = None


def _pair_up(hr_folder: str | Path, lr_folder: str | Path, result: CheckResult) -> list[tuple[Path, Path | None]]:
    """Returns (HR, LR or None) paths of two folders; notes what has no partner or two."""
    ((high, high_paths),), ((low, low_paths),) = list_folders([hr_folder], result), list_folders([lr_folder], result)
    if not high_paths or not low_paths:  # said already; that each file lacks a partner would say nothing new
        return [(path, None) for path in high_paths]
    left = by_stem(low, low_paths)
    for stem in list(left):
        plain = _SCALE_SUFFIX.sub("", stem)
        if plain != stem and plain not in left:
            left[plain] = left.pop(stem)
    jobs: list[tuple[Path, Path | None]] = []
    for stem, paths in by_stem(high, high_paths).items():
        partners = left.pop(stem, [])
        note_same_stem(paths, "pictures", "error", result)
        note_same_stem(partners, "LR pictures", "error", result)
        if not partners:
            near = next((other for other in left if other.lower() == stem.lower()), None)
            step = f"rename {name_of(left[near][0])}, which differs by case" if near else "make it, or remove this one"
            result.error("no-lr", paths[0], f"no LR picture of that name in {printable(low)}", step)
        jobs += [(path, partners[0] if partners else None) for path in paths]
    for paths in left.values():
        message = f"no HR picture of that name in {printable(high)}"
        result.error("no-hr", paths[0], message, "add it, or remove this one")
    return jobs


def _look_at_pair(hr_path: Path, lr_path: Path | None, wanted: int | None, hint: list[str]) -> _Pair:
    found = look(hr_path)
    partner = look(lr_path) if lr_path else None
    pair = _Pair([fault for fault in (found, partner) if isinstance(fault, Fault)])
    if not isinstance(found, Fault):
        pair.hr = found[0]
    if partner is None or isinstance(partner, Fault) or isinstance(found, Fault):
        return pair
    pair.lr = partner[0]
    pair.faults += partner[0].faults
    hr, lr = to_rgb(found[1]), to_rgb(partner[1])
    fits, turned = fitting_scales(found[0].size, pair.lr.size), fitting_scales(found[0].size, pair.lr.size[::-1])
    if fits:
        pair.scale = wanted if wanted in fits else fits[0]
    path, name = pair.lr.path, name_of(hr_path)
    best, as_it_is, correlation = orientation_of(hr, lr)
    if correlation - as_it_is > TURNED and correlation > 0.8:
        pair.faults.append(Fault("turned", path, f"is {best} against {name}", "error", "turn it back"))
    elif not fits and turned:
        message = f"is {size_text(pair.lr.size)}, but {name} is the other way round"
        pair.faults.append(Fault("turned", path, message, "error", "turn it"))
    elif not fits:
        size, side = found[0].size, wanted or max(1, round(found[0].size[0] / pair.lr.size[0]))
        expected = size_text((size[0] // side, size[1] // side))
        message = f"is {size_text(pair.lr.size)} but {name} is {size_text(size)}: expected {expected} at scale {side}"
        pair.faults.append(Fault("lr-size", path, message, "error", "make it again from this HR picture"))
    elif pair.scale and pair.scale > 1 and min(pair.lr.size) >= 4:
        _match(pair, hr, lr, hint, as_it_is)
    return pair


def _match(pair: _Pair, hr: Pixels, lr: Pixels, hint: list[str], correlation: float) -> None:
    """Notes the kernel that made the LR picture, or that it is shifted or of something else."""
    assert pair.lr
    assert pair.hr
    assert pair.scale
    if lr.std() < FLAT:  # every kernel makes it
        return
    match = match_kernel(hr, lr, pair.scale, hint[0])
    down, right = shift_of(hr, lr, pair.scale, match)
    off = f"{match.mean:.2f} levels of 255 in the mean and {match.largest} at most"
    if down or right:
        message = f"is shifted against {name_of(pair.hr.path)} by {right} pixels to the right and {down} down"
        pair.faults.append(Fault("shifted", pair.lr.path, message, "error", "make it again, or shift it back"))
        return
    if correlation < UNRELATED:
        message = f"does not show what {name_of(pair.hr.path)} shows (correlation {correlation:.2f})"
        pair.faults.append(Fault("wrong-pair", pair.lr.path, message, "error", "find the picture it was made from"))
        return
    pair.match = match
    if not match.is_known:
        message = f"made by no known kernel: nearest is {match.kernel}, off by {off}"
        step = "make it with densekit.resize.imresize, unless a camera took it"
        pair.faults.append(Fault("unknown-kernel", pair.lr.path, message, "warning", step))
    elif match.kernel != "benchmark":
        made = "made exactly by" if not match.largest else f"off by {off} from"
        message = f"{made} {match.kernel}, not by the benchmarks' bicubic"
        step = "scores on it compare with no published ones; make it with densekit.resize.imresize"
        pair.faults.append(Fault("other-kernel", pair.lr.path, message, "warning", step))
    if not match.largest and match.kernel.partition(" of the uncropped")[0] == match.kernel:
        hint[0] = match.kernel


def _judge_pairs(pairs: Sequence[_Pair], wanted: int | None, result: CheckResult) -> None:
    """Notes pairs of another scale than the one asked for, or than most have, and kernels that differ."""
    scales = Counter(pair.scale for pair in pairs if pair.scale)
    usual = wanted or (scales.most_common(1)[0][0] if scales else None)
    result.facts["scale"] = usual
    for pair in pairs:
        if pair.lr and pair.hr and pair.scale and pair.scale != usual:
            whose = "asked for" if wanted else "that of most pairs"
            message = f"is at scale {pair.scale} to {name_of(pair.hr.path)}; expected {usual}, {whose}"
            result.error("scale", pair.lr.path, message, f"make it again at scale {usual}, or move the pair out")
    kernels = Counter(pair.match.kernel if pair.match.is_known else "unknown" for pair in pairs if pair.match)
    if kernels:
        result.facts["kernels"] = dict(kernels.most_common())
    if len(kernels) > 1:
        counts = ", ".join(f"{count} by {kernel}" for kernel, count in kernels.most_common())
        result.warn(
            "mixed-kernels",
            None,
            f"LR pictures are made by different kernels: {counts}",
            "make all of them by one kernel",
        )
    for pair in pairs:
        if pair.lr and pair.lr.header and pair.lr.header.is_lossy:
            result.warn("lossy-lr", pair.lr.path, "compressed with losses", "keep LR pictures as PNG")
        if pair.lr and pair.hr and pair.lr.channels != pair.hr.channels:
            message = f"is {'grey' if pair.lr.channels == 1 else 'in colour'}, but {name_of(pair.hr.path)} is not"
            result.warn("mixed-grey", pair.lr.path, message, "make both of one kind")

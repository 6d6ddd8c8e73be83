"""Every fault of super-resolution data in one pass: pictures, their low-resolution partners, and splits."""

from __future__ import annotations

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
from densekit.datasets.partners import ENDING
from densekit.datasets.pictures import Pixels, to_rgb
from densekit.datasets.split import split_by_name
from densekit.errors import ConfigError, DataError
from densekit.files import printable

TURNED = 0.1  # gain in correlation that shows a picture is turned
UNRELATED = 0.5  # correlation below which two pictures do not show the same
Job = tuple[Path, Path | None]  # HR and LR


def check_sr(
    hr: Sequence[str | Path],
    *,
    lr: Sequence[str | Path] = (),
    val: Sequence[str | Path] = (),
    val_lr: Sequence[str | Path] = (),
    val_share: float = 0.0,
    scale: int | None = None,
    crop_size: int | None = None,
    threads: int | None = None,
) -> CheckResult:
    """Returns every fault of super-resolution data, and facts about it; no file stops the check.

    Args:
        hr: folders or .txt lists of high-resolution pictures.
        lr: folders of the low-resolution ones made from them, one for each of `hr`, or none; equal names up to the
            suffix, or up to what tools put behind them (x2, _LR, ...).
        val: folders of validation pictures.
        val_lr: as `lr`, for `val`.
        val_share: share of the pictures that training keeps for validation, as data.val_share.
        scale: between low and high resolution; None takes that of most pairs.
        crop_size: side of a training crop in low-resolution pixels; with `scale` it says which pictures are too small.
        threads: decoders beside each other; None: one a core, at most 8.

    Raises:
        ConfigError: `lr` has not as many folders as `hr`.
    """
    result = CheckResult()
    jobs, val_jobs = _find_pairs(hr, lr, result), _find_pairs(val, val_lr, result)
    if val_share and jobs and not val:
        jobs, val_jobs = _share_out(jobs, val_share, result)

    hint = ["benchmark"]  # the kernel of the pair before: mostly the one of the next pair too
    pairs = each(lambda job: _look_at_pair(job[0], job[1], scale, hint), jobs, threads)
    val_pairs = each(lambda job: _look_at_pair(job[0], job[1], scale, hint), val_jobs, threads)
    for pair in [*pairs, *val_pairs]:
        result.add(pair.faults)
    seen, val_seen = ([pair.hr for pair in part if pair.hr is not None] for part in (pairs, val_pairs))

    _judge_pairs([*pairs, *val_pairs], scale, result)
    need = (crop_size or 0) * (scale or result.facts.get("scale") or 1)
    why = f"a crop of {crop_size} at scale {need // (crop_size or 1)} needs {need}x{need}; it is left out"
    note_pictures(seen, need, why, result)
    note_pictures(val_seen, 0, "", result)
    find_duplicates({"train": seen, "val": val_seen}, result)
    result.facts["train"] = describe_pictures(seen)
    if val or val_jobs:
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


def _find_pairs(hr: Sequence[str | Path], lr: Sequence[str | Path], result: CheckResult) -> list[Job]:
    """Returns the (HR, LR or None) paths of some folders; notes what has no partner or two."""
    if lr and len(lr) != len(hr):
        raise ConfigError(f"found {len(lr)} folders of LR for {len(hr)} of HR; give one for each, or none")
    if lr:
        return [job for folders in zip(hr, lr, strict=True) for job in _pair_up(*folders, result)]
    jobs: list[Job] = []
    for folder, paths in list_folders(hr, result):
        for same in by_stem(folder, paths).values():
            note_same_stem(same, "pictures", "warning", result)
        jobs += [(path, None) for path in paths]
    return jobs


def _share_out(jobs: list[Job], share: float, result: CheckResult) -> tuple[list[Job], list[Job]]:
    """Returns the pairs that training keeps to train on and those it keeps for validation."""
    try:
        kept = set(split_by_name([(hr,) for hr, _ in jobs], share)[1])
    except DataError as error:
        result.error("val-share", None, str(error), "add pictures, or lower data.val_share to 0")
        return jobs, []
    return [job for job in jobs if (job[0],) not in kept], [job for job in jobs if (job[0],) in kept]


def _pair_up(hr_folder: str | Path, lr_folder: str | Path, result: CheckResult) -> list[Job]:
    """Returns (HR, LR or None) paths of two folders; notes what has no partner or two."""
    ((high, high_paths),), ((low, low_paths),) = list_folders([hr_folder], result), list_folders([lr_folder], result)
    if not high_paths or not low_paths:  # said already; that each file lacks a partner would say nothing new
        return [(path, None) for path in high_paths]
    left = by_stem(low, low_paths)
    for stem in list(left):
        plain = ENDING.sub("", stem)
        if plain != stem and plain not in left:
            left[plain] = left.pop(stem)
    jobs: list[Job] = []
    for stem, paths in by_stem(high, high_paths).items():
        partners = left.pop(stem, None) or left.pop(ENDING.sub("", stem), [])
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

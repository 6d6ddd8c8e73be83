"""Which files a command reads and which it will write: all of it known, and every clash refused, before any work."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from densekit.errors import ConfigError, DataError, ImageError
from densekit.files import printable
from densekit.image import SUFFIXES, Picture, list_images, suffix_for

SHOWN = 5  # faults of a plan that are listed; the rest is counted


@dataclass(frozen=True)
class Input:
    """A file to read, and its path below the folder or glob that named it, which outputs repeat."""

    path: Path
    place: Path


@dataclass(frozen=True)
class Ending:
    """How an output's name ends: after the stem, and as suffix; None keeps the input's where we can write that."""

    tag: str
    suffix: str | None = None


@dataclass(frozen=True)
class Job:
    """One input and its outputs, the result first."""

    source: Path
    outputs: tuple[Path, ...]


@dataclass(frozen=True)
class Plan:
    """All jobs of a command.

    Attributes:
        jobs: in the order of the inputs.
        overwrite: whether files that exist may be replaced.
        is_fixed: the result's name was given as it is, so its suffix must not change.
        owners: by real path, the input that each output belongs to; inputs own themselves.
    """

    jobs: list[Job]
    overwrite: bool
    is_fixed: bool
    owners: dict[str, Path]

    def settle(self, job: Job, picture: Picture) -> Path:
        """Returns the path of a job's result: the planned one, or one whose format can hold this very picture.

        Raises:
            ImageError: the name was given and cannot hold it.
            ConfigError: the other path is taken.
        """
        planned = job.outputs[0]
        suffix = suffix_for(picture, planned.suffix)
        if suffix == planned.suffix:
            return planned
        settled = planned.with_suffix(suffix)
        if self.is_fixed:
            alpha = " with alpha" if picture.alpha is not None else ""
            raise ImageError(
                f"{printable(job.source)}: its {picture.pixels.dtype} pixels{alpha} do not fit into "
                f"{planned.suffix}; use -o {printable(settled)}"
            )
        if fault := self.claim(job.source, settled):
            raise ConfigError(fault)
        return settled

    def claim(self, source: Path, output: Path) -> str | None:
        """Makes `output` belong to `source`; returns why it must not be written, if so."""
        name, real = printable(output), os.path.realpath(output)
        owner = self.owners.setdefault(real, source)
        if os.path.realpath(owner) == real:
            return f"{name} is an input and would be overwritten; choose another -o"
        if owner != source:
            both = f"{printable(owner)} and {printable(source)}"
            return f"{both} would both become {name}; use separate folders or -o per file"
        if _is_folder(output):
            return f"{name} is a folder; choose another -o"
        if os.path.lexists(output) and not self.overwrite:
            return f"{name} already exists; add --overwrite or choose another -o"
        return None


def find_inputs(words: Sequence[str]) -> list[Input]:
    """Returns the files that paths, folders and glob patterns name, each once.

    A folder stands for the pictures in it and below. A name that matches nothing is kept: it fails when it is read.

    Raises:
        ConfigError: an empty name.
        DataError: a folder without pictures.
        ImageError: a folder that cannot be read.
    """
    found: dict[str, Input] = {}
    for word in words:
        if not word:
            raise ConfigError("an empty INPUT; give a file, a folder or a pattern")
        for given in _expand(word):
            found.setdefault(os.path.normpath(given.path.absolute()), given)
    if not found:
        raise DataError(f"{printable(' '.join(words))}: no pictures there ({' '.join(SUFFIXES)}); name some")
    return list(found.values())


def plan(inputs: Sequence[Input], out: str | None, endings: Sequence[Ending], *, overwrite: bool) -> Plan:
    """Returns what will be written where.

    Args:
        inputs: as from `find_inputs`.
        out: a folder, or a file where there is one input; None puts outputs beside their inputs.
        endings: of each output, the result's first.
        overwrite: whether files that exist may be replaced; inputs never are.

    Raises:
        ConfigError: two outputs of one name, an output that is an input or exists, or a folder that cannot be written.
    """
    is_fixed = out is not None and _names_file(out, inputs, endings[0])
    jobs = [Job(given.path, tuple(_outputs(given, out, endings, is_fixed))) for given in inputs]
    result = Plan(jobs, overwrite, is_fixed, {os.path.realpath(job.source): job.source for job in jobs})
    faults = [fault for job in jobs for output in job.outputs if (fault := result.claim(job.source, output))]
    folders = {output.parent for job in jobs for output in job.outputs}
    faults += [fault for folder in sorted(folders) if (fault := _folder_fault(folder))]
    if faults:
        rest = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise ConfigError("\n".join(faults[:SHOWN] + rest))
    return result


def _expand(word: str) -> Iterator[Input]:
    path = Path(word)
    if _is_folder(path):
        pictures = list_images(path)
        if not pictures:
            raise DataError(f"{printable(word)}: no pictures in this folder ({' '.join(SUFFIXES)}); name another")
        yield from (Input(picture, picture.relative_to(path)) for picture in pictures)
        return
    matches = [] if os.path.lexists(word) else sorted(glob.glob(word, recursive=True))  # noqa: PTH207 - Path's takes no absolute one
    if not matches:
        yield Input(path, Path(path.name))
        return
    fixed = Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), path.parts))
    for match in map(Path, matches):
        pictures = list_images(match) if _is_folder(match) else [match]
        yield from (Input(picture, picture.relative_to(fixed)) for picture in pictures)


def _names_file(out: str, inputs: Sequence[Input], result: Ending) -> bool:
    """Says whether `-o` names the result itself, not a folder.

    Raises:
        ConfigError: it does, but there are several inputs, or no such result can be written.
    """
    suffix = Path(out).suffix
    if not suffix or out.endswith(("/", os.sep)) or _is_folder(Path(out)):
        return False
    allowed = (result.suffix,) if result.suffix else SUFFIXES
    if len(inputs) > 1:
        if suffix.lower() in SUFFIXES:
            raise ConfigError(f"-o {printable(out)} names one file, but there are {len(inputs)} inputs; give a folder")
        return False
    if suffix.lower() not in allowed:
        raise ConfigError(
            f"-o {printable(out)}: the result cannot have the suffix {printable(suffix)}; "
            f"expected {' '.join(allowed)}; for a folder write {printable(out)}/"
        )
    return True


def _outputs(given: Input, out: str | None, endings: Sequence[Ending], is_fixed: bool) -> Iterator[Path]:
    own = given.path.suffix
    for index, ending in enumerate(endings):
        suffix = ending.suffix or (own if own.lower() in SUFFIXES else ".png")
        name = f"{given.path.stem}{ending.tag}{suffix}"
        if out is None:
            yield given.path.with_name(name)
        elif not is_fixed:
            yield Path(out) / given.place.with_name(name)
        elif index == 0:
            yield Path(out)
        else:
            yield Path(out).with_name(f"{Path(out).stem}{ending.tag}{suffix}")


def _folder_fault(folder: Path) -> str | None:
    """Says why files cannot be made in a folder, which itself may have to be made."""
    nearest = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not _is_folder(nearest):
        return f"{printable(nearest)} is not a folder; choose another -o"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{printable(nearest)}: this folder cannot be written; choose another -o"
    return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long
        return False

"""What is installed, as its own records say; nothing is imported but what is to be tried."""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import platform
import re
import sys
from collections.abc import Iterator

from densekit import __version__
from densekit.cli.findings import FAIL, OK, WARN, Finding
from densekit.cli.process import describe

OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
OLDEST_PYTHON = (3, 11)
NOT_FOR_USERS = ("dev", "docs", "demo")  # extras that no command asks for
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[.*?\])?\s*([^;]*)(?:;.*extra\s*==\s*['\"]([\w-]+)['\"])?")


def versions() -> Iterator[Finding]:
    """Yields densekit, Python and the system."""
    yield Finding("densekit", OK, __version__)
    system = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform(terse=True)}"
    is_old = sys.version_info[:2] < OLDEST_PYTHON
    wanted = ".".join(map(str, OLDEST_PYTHON))
    yield Finding("python", FAIL if is_old else OK, system, f"install Python {wanted} or newer" if is_old else "")


def requirements() -> Iterator[Finding]:
    """Yields what densekit needs and is missing or of another version than it asks for; one line if all is well."""
    needed = [(name, wanted) for name, wanted, extra in _declared() if not extra]
    faults = list(_faults(needed))
    yield from faults
    if not needed:
        yield Finding("requirements", WARN, "densekit is not installed as a package", "pip install densekit")
    elif not faults:
        shown = ", ".join(f"{name} {installed(name)}" for name in ("torch", "numpy", "Pillow", "albumentations"))
        yield Finding("requirements", OK, f"{len(needed)} packages; {shown}")
    if version := installed("albumentationsx"):
        found = f"albumentationsx {version} beside albumentations: both own the module, and its licence is the AGPL"
        yield Finding("albumentations", WARN, found, "pip uninstall albumentationsx")


def opencv() -> Iterator[Finding]:
    """Yields whether exactly one OpenCV is installed, and whether it can be imported."""
    present = [name for name in OPENCV if installed(name)]
    if len(present) > 1:
        found = f"{' and '.join(present)} are installed and overwrite each other's files"
        yield Finding("opencv", FAIL, found, _reinstalled(present))
        return
    try:
        version = importlib.import_module("cv2").__version__
    except Exception as error:
        found = f"cv2 cannot be imported: {describe(error)}"
        yield Finding("opencv", FAIL, found, _reinstalled(present or [OPENCV[0]]))
        return
    yield Finding("opencv", OK, f"{present[0] if present else 'cv2 of no package'} {version}")


def torchvision() -> Iterator[Finding]:
    """Yields whether torchvision, where it is, was built for the torch that is here."""
    torch, other = installed("torch"), installed("torchvision")
    if not torch or not other:
        return
    pinned = [wanted for name, wanted, _ in _declared("torchvision") if name == "torch"]
    wanted = pinned[0] if pinned else ""
    if _fits(torch, wanted):
        yield Finding("torchvision", OK, f"{other} with torch {torch}")
    else:
        found = f"{other} was built for torch{wanted}, but {torch} is installed"
        yield Finding("torchvision", FAIL, found, "pip install -U torch torchvision")


def extras() -> Iterator[Finding]:
    """Yields what each extra lacks; none of them is needed."""
    parts: dict[str, list[str]] = {}
    for name, _, extra in _declared():
        if extra and extra not in NOT_FOR_USERS:
            parts.setdefault(extra, []).append(name)
    for extra, names in parts.items():
        missing = [name for name in names if not installed(name)]
        if not missing:
            yield Finding(f"[{extra}]", OK, ", ".join(f"{name} {installed(name)}" for name in names))
        else:
            found = f"optional, without {', '.join(missing)}"
            yield Finding(f"[{extra}]", OK, found, f"pip install 'densekit[{extra}]' if you need it")


def installed(name: str) -> str:
    """Returns the version of an installed package, empty if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _declared(package: str = "densekit") -> list[tuple[str, str, str]]:
    """Returns (name, versions, extra) of what a package asks for; none if it is not installed."""
    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    matches = filter(None, map(_REQUIREMENT.match, lines))
    return [(match[1], match[2].strip(" ()"), match[3] or "") for match in matches]


def _faults(needed: list[tuple[str, str]]) -> Iterator[Finding]:
    for name, wanted in needed:
        version = installed(name)
        if not version and name in OPENCV and any(map(installed, OPENCV)):
            continue  # another of the family, which gives the same module
        if not version:
            yield Finding(
                name, FAIL, f"not installed; needed: {wanted or 'any version'}", f"pip install '{name}{wanted}'"
            )
        elif not _fits(version, wanted):
            found = f"{version} is installed; needed: {wanted}"
            yield Finding(name, FAIL, found, f"pip install -U '{name}{wanted}'")


def _fits(version: str, wanted: str) -> bool:
    """Says whether a version is among those wanted, by `>=` and `==`, which are all that we ask for."""
    for part in filter(None, wanted.split(",")):
        operator, number = re.match(r"([<>=!~]*)\s*(.*)", part.strip()).groups()  # type: ignore[union-attr]
        if operator == ">=" and _parts(version) < _parts(number):
            return False
        if operator == "==" and _parts(version)[: len(_parts(number))] != _parts(number):
            return False
    return True


def _parts(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version, local parts such as +cu130 left away."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0]))


def _reinstalled(present: list[str]) -> str:
    """Returns the commands that leave one OpenCV; removing one alone deletes files of the other."""
    return f"pip uninstall -y {' '.join(present)} && pip install {OPENCV[0]}"

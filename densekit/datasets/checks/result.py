"""What a check found: faults, each with its next step, and facts about the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from densekit.errors import DataError
from densekit.files import printable

Severity = Literal["error", "warning"]

# What is said of a file or folder that is refused, and the kind of fault that is; the first that fits counts.
_REFUSALS = (
    ("an empty file", "empty-file"),
    ("not a PNG,", "not-a-picture"),
    ("several frames", "animated"),
    ("a GIF", "animated"),
    ("expected at most", "too-many-pixels"),
    ("mask pixels are", "colour-mask"),
    ("a folder or device", "not-a-file"),
    ("but the colours of data.class_map", "colour-depth"),
    ("holds neither", "missing-folder"),
    ("is a list of images", "missing-folder"),
    ("data.val_share", "val-share"),
    ("truncated", "truncated"),
)


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a data set.

    Attributes:
        kind: short name that groups faults of a cause, such as "no-mask".
        path: the file or folder; None where the fault is of the whole set.
        message: what was found and what was expected, on one line, without the path.
        severity: "error" if training or scores would be wrong, "warning" if they may be.
        next_step: what to do.
    """

    kind: str
    path: Path | None
    message: str
    severity: Severity
    next_step: str

    def __str__(self) -> str:
        where = f"{printable(self.path)}: " if self.path is not None else ""
        return f"{where}{self.message}; {self.next_step}"


@dataclass
class CheckResult:
    """All faults of a data set, errors first, and facts that hold whether or not it has any."""

    faults: list[Fault] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.severity == "error"]

    @property
    def warnings(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.severity == "warning"]

    @property
    def kinds(self) -> dict[str, int]:
        """The number of faults of each kind, errors first."""
        counts: dict[str, int] = {}
        for fault in self.faults:
            counts[fault.kind] = counts.get(fault.kind, 0) + 1
        return counts

    def error(self, kind: str, path: Path | None, message: str, next_step: str) -> None:
        """Notes what makes training or scores wrong."""
        self.faults.append(Fault(kind, path, message, "error", next_step))

    def warn(self, kind: str, path: Path | None, message: str, next_step: str) -> None:
        """Notes what may be meant, but mostly is not."""
        self.faults.append(Fault(kind, path, message, "warning", next_step))

    def add(self, faults: Iterable[Fault]) -> None:
        """Notes faults that were made elsewhere."""
        self.faults += faults

    def sort(self) -> None:
        """Puts errors before warnings, each by kind in the order of their discovery, then by path."""
        order = {kind: place for place, kind in enumerate(self.kinds)}
        self.faults.sort(key=lambda fault: (fault.severity != "error", order[fault.kind], str(fault.path or "")))


def refusal(path: Path | None, error: DataError) -> Fault:
    """Returns the fault of a file or folder that was refused: the error's own words, sorted into kinds."""
    text = str(error).removeprefix(f"{printable(path)}: ")
    kind = next((kind for words, kind in _REFUSALS if words in text), "unreadable")
    message, _, step = text.rpartition("; ")
    return Fault(kind, path, message or text, "error", step if message else "copy it again, or remove it")

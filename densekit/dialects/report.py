"""What became of each tensor of a foreign file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from densekit.files import printable

SHOWN = 3  # names on a line


@dataclass(frozen=True)
class LoadReport:
    """How a foreign file was read.

    Attributes:
        source: the file.
        dialect: whose names it has, such as "torchvision".
        model, arguments: the network that its names and shapes describe, as for `create_model`.
        renamed: each name of the file that changed, to the network's own.
        ignored: each name of the file that was left out, to the reason.
        filled: each name of the network that the file lacks, to what stands there, such as a counter of batches.
        notes: what else there is to know, one line each.
    """

    source: str
    dialect: str
    model: str
    arguments: dict[str, Any]
    renamed: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.renamed)} renamed", f"{len(self.ignored)} ignored", f"{len(self.filled)} filled in"]
        return f"{self.source}: {self.model} in the words of {self.dialect}; {', '.join(parts)}"

    def lines(self) -> Iterator[str]:
        """Yields a line for what was renamed, and for each reason to ignore or fill in, with the first few names."""
        if self.renamed:
            yield f"renamed: {_first([f'{old} -> {new}' for old, new in self.renamed.items()])}"
        for kind, reasons in (("ignored", self.ignored), ("filled in", self.filled)):
            for reason in dict.fromkeys(reasons.values()):
                names = [name for name, why in reasons.items() if why == reason]
                yield f"{kind} ({printable(reason)}): {_first(names)}"


def _first(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more

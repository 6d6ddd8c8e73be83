"""Layer names of two libraries, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from densekit.dialects.dialect import Tensors, Translation, rename

NUMBER = re.compile(r"\{(\w+)(?:\+(\d+))?\}")


class Rows:
    """Which layer of theirs is which of ours, row by row: ("rdbs.{d}.lff", "blocks.{d}.fusion").

    What stands in braces is a number and the same in both; "{c+1}" is larger by one than "{c}". A tensor has the name
    of its layer and, behind the last dot, its own ("weight"), which stays. The first row that fits counts.

    Args:
        rows: (theirs, ours).
    """

    def __init__(self, *rows: tuple[str, str]) -> None:
        self._rows = [(_Template(theirs), _Template(ours)) for theirs, ours in rows]

    def translate(self, tensors: Mapping[str, Tensor]) -> Translation:
        """Returns their tensors by our names; one that no row fits keeps its own, so that strict loading names it."""
        return rename(tensors, lambda name: _renamed(name, self._rows))

    def theirs(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Returns our tensors by their names."""
        rows = [(ours, theirs) for theirs, ours in self._rows]
        return {_renamed(name, rows): tensor for name, tensor in tensors.items()}


class _Template:
    """A layer's name with numbers in braces."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._more = {name: int(more or 0) for name, more in NUMBER.findall(text)}
        plain, *rest = NUMBER.split(text)  # name, what is added and plain text in turn
        pattern = re.escape(plain)
        for name, after in zip(rest[::3], rest[2::3], strict=True):
            pattern += rf"(?P<{name}>\d+){re.escape(after)}"
        self._pattern = re.compile(pattern)

    def numbers_in(self, layer: str) -> dict[str, int] | None:
        """Returns the numbers in a layer's name, or None for another one's."""
        match = self._pattern.fullmatch(layer)
        return match and {name: int(number) - self._more[name] for name, number in match.groupdict().items()}

    def filled(self, numbers: Mapping[str, int]) -> str:
        """Returns the name with these numbers."""
        return NUMBER.sub(lambda match: str(numbers[match[1]] + int(match[2] or 0)), self._text)


def _renamed(name: str, rows: Iterable[tuple[_Template, _Template]]) -> str:
    layer, _, tensor = name.rpartition(".")
    for old, new in rows:
        numbers = old.numbers_in(layer)
        if numbers is not None:
            return f"{new.filled(numbers)}.{tensor}"
    return name


def count(tensors: Mapping[str, Tensor], before: str, after: str = ".") -> int:
    """Returns how many different numbers stand between two texts at the start of names."""
    pattern = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
    return len({match[1] for name in tensors if (match := pattern.match(name))})

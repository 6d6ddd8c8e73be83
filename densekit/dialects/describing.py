"""Names and arguments for what shapes tell of a network."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from densekit.models import MODELS, model_class


def implied_arguments(name: str) -> dict[str, Any]:
    """Returns all arguments of the network that a name alone stands for, sequences as lists."""
    defaults = {key: p.default for key, p in inspect.signature(model_class(name)).parameters.items()}
    full = {**defaults, **MODELS[name].arguments}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in full.items()}


def shortest(
    found: Mapping[str, Any], names: Mapping[str, Mapping[str, Any]], structure: Sequence[str], general: str
) -> tuple[str, dict[str, Any]]:
    """Returns the name of a network and the arguments that its name does not imply.

    Args:
        found: arguments.
        names: names, to all arguments that they imply.
        structure: the arguments by which a name goes; the others, such as the number of classes, may differ.
        general: the name where none fits.
    """
    fitting = (name for name, full in names.items() if all(full[key] == found[key] for key in structure))
    name = next(fitting, general)
    return name, {key: value for key, value in found.items() if value != names[name][key]}


def find_share(sizes: Iterable[tuple[int, int]], simple: Iterable[float], multiple: int = 1) -> float | None:
    """Returns a share of which all of these come out by rounding down, one of the simple ones if any fits, or None.

    Args:
        sizes: (channels, those kept) of each place.
        simple: shares to try first.
        multiple: what the kept channels are rounded down to a multiple of.
    """
    places = list(sizes)
    # All shares of an interval give the same: tried are the simple ones, and its middle.
    least = max((Fraction(kept, channels) for channels, kept in places), default=Fraction(1))
    most = min((Fraction(kept + multiple, channels) for channels, kept in places), default=Fraction(1))
    for share in (*simple, float((least + most) / 2)):
        if all(int(share * channels / multiple) * multiple == kept for channels, kept in places):
            return share
    return None

"""The tile option, which both tasks read alike."""

from __future__ import annotations

from typing import Literal, TypeAlias

from densekit.errors import ConfigError
from densekit.files import printable

Tile: TypeAlias = Literal["auto", "off"] | int

SMALLEST = 16  # pixels
BUDGET = 0.5  # of the free memory; the other half is for the result, for workspaces and for everyone else


def check_tile(tile: Tile) -> Literal["auto"] | int | None:
    """Returns "auto", a size in pixels, or None for "off".

    Raises:
        ConfigError: neither "auto", "off" nor a whole number of at least 16.
    """
    if tile == "off":
        return None
    if tile == "auto":
        return "auto"
    if isinstance(tile, int) and tile >= SMALLEST:
        return tile
    raise ConfigError(f"tile {printable(tile)}: expected auto, off or a size of at least {SMALLEST} pixels")

"""Every error a user can reach, and the exit code it ends a command with.

DensekitError
├── ConfigError      2  usage, config, output collisions
├── DataError        3  a data set or its files
│   └── ImageError   3  one picture or mask (inside a batch it counts towards exit code 1)
├── DeviceError      4  device or memory
├── CheckpointError  5  damaged, hostile or foreign weights
└── Interrupted      130/143  stopped by a signal, after saving

A message is one line: what was found, what was expected, where, and the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DensekitError(Exception):
    """Base of every error with a message meant for the user."""

    exit_code = 1


class ConfigError(DensekitError, ValueError):
    """A wrong option, configuration value or output path."""

    exit_code = 2


class DataError(DensekitError, ValueError):
    """A data set that cannot be used as it is."""

    exit_code = 3


class ImageError(DataError):
    """One picture or mask that cannot be read or written."""


class DeviceError(DensekitError, RuntimeError):
    """A device that is missing, or memory that does not suffice."""

    exit_code = 4


class CheckpointError(DensekitError, ValueError):
    """Weights that are damaged, hostile, or not those of this network."""

    exit_code = 5


class Interrupted(DensekitError):
    """A run that a signal ended after its state was saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code: int = 128 + signum


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""

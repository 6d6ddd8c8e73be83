"""The whole state of a run in one file: magic, version, length, SHA-256, then `torch.save` bytes.

torch's own format accepts damaged tensors silently. There is no random state in it: see `densekit.datasets.draws`.
"""

from __future__ import annotations

import hashlib
import io
import struct
import sys
from pathlib import Path
from typing import Any

import torch

from densekit.errors import CheckpointError
from densekit.files import atomic_write, printable

_MAGIC = b"densekit-state\x00\x01"
KEYS = {"step", "best", "net", "average", "optimizer", "config"}  # states of all versions hold these
_HEAD = struct.Struct(f"<{len(_MAGIC)}sQ32s")  # magic with version, payload bytes, SHA-256 of the payload


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes `state`, tensors and plain values only, with at least `KEYS`, atomically; equal states, equal bytes.

    Raises:
        OSError: the folder cannot be written; the old file stays.
    """
    buffer = io.BytesIO()
    torch.save(plain(state), buffer)
    payload = buffer.getvalue()
    atomic_write(path, _HEAD.pack(_MAGIC, len(payload), hashlib.sha256(payload).digest()) + payload)


def load_state(path: Path) -> dict[str, Any]:
    """Returns what `save_state` wrote, on the CPU.

    Raises:
        CheckpointError: not such a file, or not the bytes that were written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    if len(data) < _HEAD.size:
        raise CheckpointError(f"{printable(path)}: too short for a training state; damaged")
    magic, size, digest = _HEAD.unpack_from(data)
    payload = data[_HEAD.size :]
    if magic != _MAGIC:
        raise CheckpointError(f"{printable(path)}: not a training state of this densekit")
    if len(payload) != size or hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{printable(path)}: its bytes are not those that were written; damaged")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # ten kinds of exception are known
        raise CheckpointError(f"{printable(path)}: cannot be read: {printable(error)}") from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise CheckpointError(f"{printable(path)}: not a training state of this densekit")
    return state


def plain(value: Any) -> Any:
    """Returns `value` with dicts and lists of the plain kinds, in which equal strings are one object.

    Pickle writes a string that it has met before as a reference. Which strings are one object depends on where they
    come from, a literal or a file, so without this a resumed run would write other bytes than one never stopped.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value

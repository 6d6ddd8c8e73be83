"""What a checkpoint says about itself, readable without torch.

A checkpoint's metadata holds one key, `densekit`: JSON that names the network, its arguments and where the weights
come from, and the SHA-256 of the whole file with the digest's own place zeroed. One key only, because safetensors
writes several in random order, and equal weights are to give equal files. safetensors itself does not notice a flipped
bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densekit.errors import CheckpointError
from densekit.files import printable

FORMAT = 1
DIGEST = 64  # hexadecimal digits of SHA-256
SEAL = b'\\"sha256\\":\\"'  # as the JSON text stands, escaped, inside the header
MAX_HEADER = 10_000_000  # bytes; the longest of ours has 0.3 MB, and as JSON a hostile one takes 30 times its size
MAX_FILE = 1 << 30  # bytes; the largest network of ours has 0.15 GB


@dataclass(frozen=True)
class Card:
    """What a checkpoint says about itself."""

    task: str
    model: str
    arguments: dict[str, Any]
    classes: tuple[str, ...] = ()  # seg: names, in the order of their ids
    palette: tuple[tuple[int, int, int], ...] = ()  # seg: RGB, 0..255
    step: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)  # figures, always with their protocol and data
    data: str = ""  # what the weights were trained on
    licence: str = ""  # of the training data, which binds the weights
    bn_mode: str = "running"  # statistics that norms use in prediction
    recipe: str = ""  # the config that made them


def read_card(path: str | Path) -> Card:
    """Returns the card of a checkpoint from its header alone, so the seal is not verified.

    Raises:
        CheckpointError: missing, or not a checkpoint of densekit.
    """
    source = printable(path)
    return card_from(split_header(read_bytes(path, header_only=True), source)[1], source)


def read_bytes(path: str | Path, *, header_only: bool = False) -> bytes:
    """Returns the bytes of a checkpoint, or those up to the end of its header.

    Raises:
        CheckpointError: it cannot be read, or is larger than any checkpoint.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
            if header_only:
                return head + file.read(min(int.from_bytes(head, "little"), MAX_HEADER))
            data = head + file.read(MAX_FILE)
    except OSError as error:
        raise CheckpointError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise CheckpointError(f"{printable(path)}: larger than {MAX_FILE >> 20} MiB, as no network of ours is; refused")
    return data


def split_header(data: bytes, source: str) -> tuple[int, dict[str, Any]]:
    """Returns where the seal's digest starts, and the description in a file's header.

    Raises:
        CheckpointError: not a checkpoint of densekit; `source` names it.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 10 or not 2 <= size <= min(MAX_HEADER, len(data) - 8) or data[8:9] != b"{":
        raise CheckpointError(f"{source}: {foreign_kind(data)}")
    header = data[8 : 8 + size]
    if header.count(SEAL) != 1:
        raise CheckpointError(
            f"{source}: weights without a densekit description, so they cannot say what network they are; "
            "expected a checkpoint that densekit saved"
        )
    try:
        description = json.loads(json.loads(header)["__metadata__"]["densekit"])
        if not isinstance(description, dict):
            raise TypeError("not an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{source}: its header is damaged; copy or download it again") from error
    return 8 + header.index(SEAL) + len(SEAL), description


def digest_of(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, as sha256sum prints it.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_ours(path: str | Path) -> bool:
    """Says whether a file is a checkpoint that densekit saved, damaged or not.

    Raises:
        CheckpointError: it cannot be read.
    """
    return SEAL in read_bytes(path, header_only=True)


def verify_seal(data: bytes, start: int, source: str) -> str:
    """Returns the seal of a file, whose digest stands at `start`, once its bytes are known to be those written.

    Raises:
        CheckpointError: they are not.
    """
    written = data[start : start + DIGEST].decode("ascii", "replace")
    found = hashlib.sha256(data[:start] + b"0" * DIGEST + data[start + DIGEST :]).hexdigest()
    if found != written:
        raise CheckpointError(
            f"{source}: SHA-256 of its bytes is {found[:8]}.. but its seal says {printable(written[:8])}..: "
            "damaged file; copy or download it again"
        )
    return found


def card_from(description: dict[str, Any], source: str) -> Card:
    """Returns the card in a file's description.

    Raises:
        CheckpointError: another format, or a description that is not one.
    """
    version = description.get("format")
    if version != FORMAT:
        raise CheckpointError(
            f"{source}: format {printable(version)}, but this densekit reads {FORMAT}; update densekit"
        )
    fields = {f.name: f for f in dataclasses.fields(Card)}
    given = {key: value for key, value in description.items() if key in fields}
    missing = [name for name in ("task", "model", "arguments") if name not in given]
    wrong = [key for key, value in given.items() if not _FITS[str(fields[key].type)](value)]
    if missing or wrong:
        fault = f"lacks {missing[0]}" if missing else f"has an unusable {wrong[0]}"
        raise CheckpointError(f"{source}: its description {fault}, so it is not one that densekit wrote; refused")
    return dataclasses.replace(
        Card(**given),
        classes=tuple(given.get("classes", ())),
        palette=tuple((r, g, b) for r, g, b in given.get("palette", ())),
    )


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value)


# What JSON may hold for each type of field, as annotated.
_FITS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int and value >= 0,
    "dict[str, Any]": lambda value: isinstance(value, dict),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "tuple[tuple[int, int, int], ...]": lambda value: isinstance(value, list) and all(map(_is_colour, value)),
}


def foreign_kind(data: bytes) -> str:
    """Says what a file that is no safetensors file seems to be, and what to do."""
    if data.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`"
    if data.startswith((b"PK\x03\x04", b"\x80")):
        return "a pickled checkpoint, which can run code when loaded; refused, densekit reads .safetensors"
    if not data:
        return "an empty file; copy or download it again"
    return "not a safetensors file, or a damaged one; densekit reads .safetensors"

"""Tensors by name out of files that others wrote; nothing in them is ever run."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from densekit.cards import MAX_FILE, foreign_kind, read_bytes
from densekit.dialects import hdf5
from densekit.dialects.dialect import NOTE, Tensors
from densekit.errors import CheckpointError
from densekit.files import printable

# Where programs keep the weights in what they save; averaged ones first, as they are the ones to use.
WRAPPERS = (
    "state_dict_ema", "model_ema", "params_ema", "params-ema",
    "model_state_dict", "state_dict", "params", "model", "net",
)  # fmt: skip
MAX_DEPTH = 3  # wrappers inside each other
SHOWN = 5  # keys of a file without weights, in the message
KERAS_PART = "model.weights.h5"  # of a .keras file, which is a zip


@dataclass(frozen=True)
class Contents:
    """What a foreign file holds.

    Attributes:
        tensors: by the names in the file.
        notes: a line for each wrapper that was taken off.
        note: JSON that densekit left where it wrote the file, see `densekit.dialects.writing`, or "".
    """

    tensors: Tensors
    notes: tuple[str, ...] = ()
    note: str = ""


def read_contents(path: str | Path) -> Contents:
    """Returns the tensors of a file by their names, without the dictionaries around them.

    Read are .safetensors, torch's .pth, .pt, .ckpt and .bin with tensors alone, numpy's .npz, and Keras' .h5,
    .weights.h5 and .keras, whose names are those of layers and weights, "conv1_conv/kernel".

    Raises:
        CheckpointError: missing, damaged, empty, a Git LFS pointer, or a file that would have to be unpickled.
    """
    source = printable(path)
    data = read_bytes(path)
    if data[8:9] == b"{":  # first, since the eight bytes before, a length, may be any of the others' marks
        return _from_safetensors(data, source)
    if data.startswith(hdf5.SIGNATURE):
        return Contents(*_from_hdf5(data, source))
    if data.startswith(b"PK\x03\x04"):
        return _from_zip(data, source)
    if data.startswith(b"\x80"):
        return _unwrapped(_from_torch(data, source), source)
    raise CheckpointError(f"{source}: {_kind(data)}")


def _kind(data: bytes) -> str:
    """Says what a file that holds no weights seems to be."""
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page in place of weights; download the file itself, not the page about it"
    if data and not data.startswith(b"version https://git-lfs"):
        return "no weights, or damaged ones; expected .safetensors, .pth, .npz, .h5 or .keras"
    return foreign_kind(data)


def _from_safetensors(data: bytes, source: str) -> Contents:
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:  # safetensors and torch raise their own kinds
        raise CheckpointError(
            f"{source}: a damaged or cut safetensors file ({printable(error)}); copy or download it again"
        ) from error
    if not tensors:
        raise CheckpointError(f"{source}: holds no weights at all; expected those of a network")
    return Contents(tensors, note=str(header.get("__metadata__", {}).get(NOTE, "")))


def _from_zip(data: bytes, source: str) -> Contents:
    """Returns what a torch file, a .keras or an .npz holds, all of which are zips."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_FILE:
                raise CheckpointError(f"{source}: unpacks to more than {MAX_FILE >> 20} MiB; refused")
            notes = [entry for entry in entries if entry.filename.endswith(f"/{NOTE}.json")]
            note = archive.read(notes[0]).decode("utf-8", "replace") if notes else ""
            names = [entry.filename for entry in entries]
            keras = archive.read(KERAS_PART) if KERAS_PART in names else None
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises many kinds, by what is wrong
        raise CheckpointError(f"{source}: a damaged or cut file; copy or download it again") from error
    if keras is not None:
        return Contents(*_from_hdf5(keras, source))
    if names and all(name.endswith(".npy") for name in names):
        return Contents(_from_npz(data, source))
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{source}: a TorchScript program, which would be run; refused, save its state_dict()")
    return _unwrapped(_from_torch(data, source), source, note)


def _from_torch(data: bytes, source: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about storages of old files
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # at least ten kinds, by what is wrong with the file
        text = str(error)
        if "Unsupported" in text or "weights_only" in text.lower() or "WeightsUnpickler" in text:
            kind = (
                "holds more than tensors, such as a pickled module, and loading that can run code; refused. Where it "
            )
            kind += "was made, save `model.state_dict()` instead"
        else:
            kind = (
                f"a damaged or cut torch file ({printable(text.splitlines()[0] if text else type(error).__name__)}); "
            )
            kind += "copy or download it again"
        raise CheckpointError(f"{source}: {kind}") from error


def _from_npz(data: bytes, source: str) -> Tensors:
    try:
        with np.load(io.BytesIO(data)) as arrays:  # which unpickles nothing unless told to
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except Exception as error:  # numpy's and zipfile's own kinds
        raise CheckpointError(f"{source}: not a readable .npz of numbers: {printable(error)}") from error


def _from_hdf5(data: bytes, source: str) -> tuple[Tensors, tuple[str, ...], str]:
    try:
        tensors, note = hdf5.read_layers(data)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except Exception as error:  # h5py raises what HDF5 says
        raise CheckpointError(
            f"{source}: a damaged or cut HDF5 file ({printable(error)}); copy or download it again"
        ) from error
    if not tensors:
        raise CheckpointError(f"{source}: holds no weights; expected layers of Keras")
    return tensors, (), note


def _unwrapped(found: Any, source: str, note: str = "") -> Contents:
    """Returns the tensors of a saved object, and a line for each dictionary around them.

    Raises:
        CheckpointError: there are none.
    """
    notes = []
    for _ in range(MAX_DEPTH):
        if not isinstance(found, Mapping) or _are_tensors(found):
            break
        key = next((key for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        nested = [key for key, value in found.items() if isinstance(value, Mapping) and _are_tensors(value)]
        if key is None and len(nested) == 1:
            key = nested[0]
        if key is None:
            break
        notes.append(f"taken from its {printable(key)!r}")
        found = found[key]
    named = found if isinstance(found, Mapping) else {}
    tensors = {key: value for key, value in named.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(printable(key) for key in list(named)[:SHOWN]) or f"a {printable(type(found).__name__)}"
        raise CheckpointError(f"{source}: holds no weights by name (it has {keys}); expected those of a network")
    return Contents(tensors, tuple(notes), note)


def _are_tensors(found: Mapping[Any, Any]) -> bool:
    """Says whether a mapping is weights by name: mostly tensors, whatever else a program may have put beside them."""
    count = sum(isinstance(value, Tensor) for value in found.values())
    return count > 0 and 2 * count >= len(found)

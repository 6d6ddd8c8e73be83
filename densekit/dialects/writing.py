"""From a network of ours to a file that another library reads."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import safetensors.torch
import torch

from densekit.cards import Card
from densekit.dialects import hdf5
from densekit.dialects.dialect import COUNTER, NOTE, Tensors
from densekit.dialects.note import write_note
from densekit.dialects.reading import is_rounded
from densekit.dialects.table import find_dialect
from densekit.errors import CheckpointError, ConfigError
from densekit.files import atomic_write, printable
from densekit.models import MODELS

SAFETENSORS = ".safetensors"
TORCH = (".pth", ".pt", ".bin")
KERAS = ".h5"


def family_of(card: Card) -> str:
    """Returns the family of a card's network, as `densekit.dialects.table.FAMILIES` has it."""
    return MODELS[card.model].target.partition(":")[0]


def check_target(card: Card, dialect_name: str, path: str | Path) -> None:
    """Passes a file that a network can be written to in the words of a dialect, as far as its name and card tell.

    Raises:
        ConfigError: no such dialect for this network, or a suffix that it is not written with.
    """
    dialect = find_dialect(dialect_name, family_of(card))
    fitting = (SAFETENSORS, *TORCH) if dialect.suffix == SAFETENSORS else (dialect.suffix,)
    if Path(path).suffix not in fitting:
        raise ConfigError(f"{printable(path)}: files of {dialect_name} end with {', '.join(fitting)}")


def write_foreign(tensors: Tensors, card: Card, dialect_name: str, path: str | Path) -> None:
    """Writes weights in the words of a dialect, with our card in a place where its library does not look.

    What is torch's is written as .safetensors, or as a .pth, .pt or .bin that `torch.load(weights_only=True)` reads;
    what is Keras' as the .h5 that `model.load_weights` reads. Read again by `read_foreign`, it is the same card and, to
    the bit, the same tensors; that is made sure before anything is written.

    Args:
        tensors: of a whole network, by our names, as its checkpoint has them.
        card: of that network.
        dialect_name: one of `dialect_names(family, written=True)`.
        path: replaced atomically.

    Raises:
        ConfigError: as `check_target`.
        CheckpointError: a network that the dialect's library does not have.
        OSError: the folder cannot be written.
    """
    check_target(card, dialect_name, path)
    dialect = find_dialect(dialect_name, family_of(card))
    assert dialect.to_theirs is not None, "find_dialect gives those that can be written"
    try:
        theirs = dialect.to_theirs(dict(tensors), card)
    except CheckpointError as error:
        raise CheckpointError(f"{printable(path)}: {error}") from error
    back = dialect.to_ours(dict(theirs)).tensors
    kept = {name: tensor for name, tensor in tensors.items() if name not in back or not torch.equal(tensor, back[name])}
    for name in (*kept, *(back.keys() - tensors.keys())):
        if not (name.endswith(COUNTER) or (name in back and name in tensors and is_rounded(tensors[name], back[name]))):
            raise CheckpointError(
                f"{printable(path)}: {printable(name)} would not come back from {dialect_name} as it is; not written"
            )
    atomic_write(path, _encoded(theirs, write_note(card, kept), Path(path).suffix))


def _encoded(tensors: Tensors, note: str, suffix: str) -> bytes:
    """Returns the bytes of a file with this suffix."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if suffix == SAFETENSORS:
        return safetensors.torch.save(whole, metadata={NOTE: note})
    if suffix == KERAS:
        return hdf5.write_layers(whole, note)
    buffer = io.BytesIO()
    torch.save(dict(sorted(whole.items())), buffer)  # safetensors gives another order each time
    with zipfile.ZipFile(buffer, "a") as archive:  # torch reads the entries that it knows, and no others
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(zipfile.ZipInfo(f"{folder}/{NOTE}.json"), note)
    return buffer.getvalue()

"""What a dialect is: a way of naming the weights of one family of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from densekit.cards import Card

Tensors = dict[str, Tensor]
COUNTER = ".num_batches_tracked"  # of a norm; it changes nothing in prediction, and old files lack it
NOTE = "densekit_card"  # where a file that densekit wrote has its note: key of metadata, zip entry or dataset


@dataclass(frozen=True)
class Translation:
    """Foreign weights in our words.

    Attributes:
        tensors: by the names that the network has here.
        renamed: foreign name -> ours, where they differ.
        ignored: foreign name -> why it is left out.
        hints: constructor arguments that the dialect tells and shapes do not, such as a variant of the upsampler.
        notes: what a reader should know, one line each.
        bn_mode: statistics that norms are to use in prediction; see `Card.bn_mode`.
    """

    tensors: Tensors
    renamed: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    hints: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bn_mode: str = "running"


@dataclass(frozen=True)
class Dialect:
    """How one library names the weights of one family.

    Attributes:
        name: as the command line and reports say it.
        family: the key of `table.FAMILIES` that describes a network from our names.
        recognises: whether a file's tensors are of this dialect; cheap, and true for no other dialect's.
        to_ours: foreign tensors -> `Translation`; pure, its argument stays as it is.
        to_theirs: our tensors and card -> foreign ones; None where nothing can be written.
        suffix: of the files it is written to.
    """

    name: str
    family: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    to_ours: Callable[[Tensors], Translation]
    to_theirs: Callable[[Tensors, Card], Tensors] | None = None
    suffix: str = ".safetensors"


def rename(tensors: Mapping[str, Tensor], new_name: Callable[[str], str | None], why: str = "unknown") -> Translation:
    """Returns a translation that changes names alone; a name for which there is no new one is ignored, with `why`."""
    ours: Tensors = {}
    renamed, ignored = {}, {}
    for old, tensor in tensors.items():
        new = new_name(old)
        if new is None:
            ignored[old] = why
            continue
        ours[new] = tensor
        if new != old:
            renamed[old] = new
    return Translation(ours, renamed, ignored)

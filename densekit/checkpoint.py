"""Writing and reading self-describing weights: one sealed `.safetensors` file that needs nothing beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from densekit.cards import DIGEST, FORMAT, SEAL, Card, card_from, read_bytes, split_header, verify_seal
from densekit.errors import CheckpointError
from densekit.files import atomic_write, printable
from densekit.models import MODELS, create_model

MAX_NUMBER = 4096  # no network has more blocks, layers or channels than this; a hostile file may ask for more
SLACK = 1000  # parameters a described network may have beyond those of its file, so that we can say which it lacks
MAX_LENGTH = 256  # nor a longer list of them, or a longer word


def save_model(path: str | Path, net: nn.Module, card: Card, *, half: bool = False) -> None:
    """Writes the weights of `net` and its card; the same weights and card give the same bytes.

    Args:
        path: the file, replaced atomically.
        net: its parameters and persistent buffers are saved.
        card: see `Card`.
        half: stores parameters as float16: half the size, and an error of at most 2 ** -11 of each weight, or 2 ** -25.

    Raises:
        CheckpointError: a weight is not finite; the old file, if any, stays.
        OSError: the folder cannot be written.
    """
    parameters = {name for name, _ in net.named_parameters()}
    tensors = {
        name: tensor.detach().cpu().to(torch.float16 if half and name in parameters else tensor.dtype)
        for name, tensor in net.state_dict().items()
    }
    save_tensors(path, tensors, card)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], card: Card) -> None:
    """Writes the tensors of a network, in main memory, and its card, as `save_model` does.

    Raises:
        CheckpointError: a value is not finite; the old file, if any, stays.
        OSError: the folder cannot be written.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{printable(path)}: {name} holds values that are not finite; nothing was written")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    atomic_write(path, sealed(whole, {"format": FORMAT, **dataclasses.asdict(card)}))


def sealed(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> bytes:
    """Returns a safetensors file whose metadata is `description` and the file's own SHA-256."""
    text = json.dumps({"sha256": "0" * DIGEST, **description}, separators=(",", ":"), allow_nan=False)
    data = bytearray(safetensors.torch.save(dict(tensors), metadata={"densekit": text}))
    start = data.index(SEAL) + len(SEAL)
    assert data.count(SEAL, 0, 8 + int.from_bytes(data[:8], "little")) == 1, "a description with a second sha256"
    data[start : start + DIGEST] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def load_model(path: str | Path) -> tuple[nn.Module, Card]:
    """Returns the network that a checkpoint describes, with its weights in float32, and its card.

    Raises:
        CheckpointError: missing, damaged, hostile, or weights that are not those of the network it names.
    """
    tensors, card = read_tensors(path)
    net = build(card, tensors, printable(path))
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return net, card


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], Card]:
    """Returns the tensors of a checkpoint as they are stored, and its card; `build` says whether they fit it.

    Raises:
        CheckpointError: missing or damaged.
    """
    source = printable(path)
    data = read_bytes(path)
    start, description = split_header(data, source)
    verify_seal(data, start, source)
    card = card_from(description, source)
    try:
        return safetensors.torch.load(data), card
    except Exception as error:  # safetensors and torch raise their own kinds
        raise CheckpointError(f"{source}: not a readable safetensors file: {printable(error)}") from error


def build(card: Card, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """Returns the network a card names, with random weights, once `tensors` are known to be weights of it.

    The comparison is made on the meta device, so that a hostile description cannot make us allocate.

    Raises:
        CheckpointError: they are not, or the card names no network.
    """
    check_arguments(card.arguments, source)
    try:
        with at_most_parameters(len(tensors) + SLACK), torch.device("meta"):
            expected = create_model(card.model, **card.arguments).state_dict()
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except Exception as error:  # constructors are not written for hostile arguments
        raise CheckpointError(f"{source}: describes no network of this densekit: {printable(error)}") from error
    if MODELS[card.model].task != card.task:
        raise CheckpointError(
            f"{source}: says task {printable(card.task)}, but {card.model} is for {MODELS[card.model].task}; refused"
        )
    for kind, names in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has the unknown", tensors.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(f"{source}: {kind} {printable(min(names))} ({len(names)} in all) for {card.model}")
    for name, wanted in expected.items():
        found = tensors[name]
        if found.shape != wanted.shape:
            raise CheckpointError(
                f"{source}: {name} is {tuple(found.shape)}, but {card.model} needs {tuple(wanted.shape)}"
            )
        if found.is_floating_point() != wanted.is_floating_point() or found.is_complex():
            raise CheckpointError(f"{source}: {name} is {found.dtype}, but {card.model} needs {wanted.dtype}")
    return create_model(card.model, **card.arguments)


def check_arguments(arguments: Mapping[str, Any], source: str) -> None:
    """Refuses constructor arguments that no real network has.

    Raises:
        CheckpointError: a number, list or value out of bounds.
    """
    for key, value in arguments.items():
        values = value if isinstance(value, list) else [value]
        fits = len(values) <= MAX_LENGTH and all(
            item is None
            or (isinstance(item, str) and len(item) <= MAX_LENGTH)
            or (isinstance(item, int | float) and abs(item) <= MAX_NUMBER)  # false for NaN
            for item in values
        )
        if not fits:
            raise CheckpointError(f"{source}: its argument {printable(key)} is out of bounds; refused")


@contextmanager
def at_most_parameters(limit: int) -> Iterator[None]:
    """Ends the building of a network that gets more parameters than `limit`: they take memory even on the meta device.

    Raises:
        CheckpointError: it does.
    """
    count = 0

    def note(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += parameter is not None
        if count > limit:
            raise CheckpointError(
                f"describes a network of more than {limit} parameters, which it does not hold; refused"
            )

    handle = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        handle.remove()

"""What densekit leaves in a foreign file that it writes, so that coming back loses nothing."""

from __future__ import annotations

import dataclasses
import json

import torch

from densekit.cards import FORMAT, Card, card_from
from densekit.dialects.dialect import Tensors
from densekit.errors import CheckpointError


def write_note(card: Card, kept: Tensors) -> str:
    """Returns JSON of a card and of the small tensors that the file's dialect cannot hold, or not to the bit."""
    values = {name: tensor.tolist() for name, tensor in kept.items()}
    return json.dumps({"format": FORMAT, "card": dataclasses.asdict(card), "kept": values}, allow_nan=False)


def read_note(text: str, source: str) -> tuple[Card, Tensors]:
    """Returns the card in a note, and the tensors by our names: int64, or float32.

    Raises:
        CheckpointError: not a note that densekit wrote, or one of another format.
    """
    try:
        if '"sha256"' in text:
            raise ValueError("a key that no card has, since it marks the seal of a checkpoint")
        note = json.loads(text)
        card = card_from({"format": note["format"], **note["card"]}, source)
        if any(type(value) not in (int, float) for key in ("mean", "std") for value in card.arguments.get(key) or ()):
            raise TypeError("statistics that are no numbers")
        kept = {str(name): torch.tensor(values) for name, values in note["kept"].items()}
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{source}: the note that densekit left in it is damaged; copy it again") from error
    return card, kept

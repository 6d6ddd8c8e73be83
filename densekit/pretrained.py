"""Trained weights by name: the ones inside the package, and any file."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densekit.cards import Card, read_card
from densekit.errors import CheckpointError, ConfigError, suggest
from densekit.files import printable
from densekit.models import MODELS, model_names

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).parent / "weights"


def trained_names(pattern: str = "*") -> list[str]:
    """Returns the names of the embedded models that match a shell pattern."""
    return sorted(fnmatch.filter((path.stem for path in WEIGHTS.glob("*.safetensors")), pattern))


def trained_cards(pattern: str = "*") -> dict[str, Card]:
    """Returns the card of each embedded model that matches a shell pattern, by name."""
    return {name: read_card(WEIGHTS / f"{name}.safetensors") for name in trained_names(pattern)}


def find_weights(name_or_path: str | Path) -> Path:
    """Returns the file behind the name of an embedded model or a path.

    Raises:
        ConfigError: neither; an architecture, which has no weights, is named as such.
        CheckpointError: a path to a file that is missing.
    """
    text = str(name_or_path)
    if text in trained_names():
        return WEIGHTS / f"{text}.safetensors"
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix or "/" in text:
        raise CheckpointError(
            f"{printable(text)}: no such file; give a .safetensors file or a name from densekit models"
        )
    known = trained_names()
    if text in MODELS:
        near = [name for name in known if name.startswith(text.split("_")[0])] or known or ["none"]
        raise ConfigError(f"{text} is an architecture without weights; trained models: {', '.join(near)}")
    raise ConfigError(f"model {printable(text)!r}: no such model{suggest(text, known)} (densekit models lists all)")


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell pattern: architectures (`create_model`), then trained models (`load`)."""
    return model_names(pattern) + trained_names(pattern)


def create_encoder(name: str, *, weights: str | Path | None = None, **arguments: Any) -> nn.Module:
    """Returns an encoder: a module whose output is the list of feature maps that `out_indices` names.

    Args:
        name: "densenet121", ...; see `list_models("densenet*")`.
        weights: a checkpoint of densekit, or None for random weights.
        arguments: of `densekit.models.densenet.DenseNetEncoder`, such as `in_channels`, `out_indices`, `taps`,
            `output_stride`, `memory`.

    Raises:
        ConfigError: no such encoder or argument.
        CheckpointError: weights that are damaged, or lack a tensor of this encoder, or hold it in another shape.
    """
    from densekit.checkpoint import load_model
    from densekit.models import create_encoder as create

    encoder = create(name, **arguments)
    if weights is not None:
        given = load_model(find_weights(weights))[0].state_dict()
        source = printable(weights)
        for key, value in encoder.state_dict().items():
            if key not in given:
                raise CheckpointError(f"{source}: lacks {key}, which {name} needs")
            if given[key].shape != value.shape:
                raise CheckpointError(
                    f"{source}: {key} is {tuple(given[key].shape)}, but {name} needs {tuple(value.shape)}"
                )
        encoder.load_state_dict({key: given[key] for key in encoder.state_dict()})
    return encoder

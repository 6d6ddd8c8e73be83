"""`densekit models`: what there is, the trained networks apart from the architectures."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

from densekit.cli.candidates import complete_names
from densekit.cli.outputs import columns
from densekit.errors import ConfigError, suggest
from densekit.files import printable

if TYPE_CHECKING:
    from pathlib import Path

    from densekit.cards import Card

_FACTS = ("name", "task", "output", "parameters", "size", "state")
_HEADS = (*_FACTS, "figures on validation data", "licence of the training data")
_NOT_LEARNT = ("running_mean", "running_var", "num_batches_tracked")  # what a file holds beside parameters


@click.command()
@click.argument("pattern", default="*", shell_complete=complete_names)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each model on stdout.")
def models(pattern: str, as_json: bool) -> None:
    """Lists trained models and architectures.

    PATTERN selects by name, as in 'rdn*'. Trained models go into `predict -m NAME`; those that are embedded are part of
    the package. Architectures have no weights: a config names them for `train`, and densekit encoder list tells what
    those with an encoder cost.
    """
    from densekit.models import MODELS, model_names
    from densekit.pretrained import WEIGHTS, list_models, trained_cards

    trained, architectures = trained_cards(pattern), model_names(pattern)
    if not trained and not architectures:
        raise ConfigError(f"no model matches {printable(pattern)!r}{suggest(pattern, list_models())}")
    files = {name: WEIGHTS / f"{name}.safetensors" for name in trained}
    if as_json:
        for name, card in trained.items():
            click.echo(json.dumps(_record(name, card, files[name]), ensure_ascii=False, allow_nan=False))
        for name in architectures:
            entry = MODELS[name]
            record = {"name": name, "kind": "architecture", "task": entry.task, "encoder": bool(entry.encoder)}
            click.echo(json.dumps(record))
        return
    if trained:
        rows = [_row(name, card, files[name]) for name, card in trained.items()]
        click.echo(columns([_HEADS, *rows]))
    if trained and architectures:
        click.echo()
    if architectures:
        entries = [(name, MODELS[name]) for name in architectures]
        rows = [(name, entry.task, "yes" if entry.encoder else "-") for name, entry in entries]
        click.echo(columns([("architecture", "task", "encoder"), *rows]))


def _record(name: str, card: Card, path: Path) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "trained",
        "state": "embedded",
        "task": card.task,
        "model": card.model,
        "arguments": card.arguments,
        "classes": list(card.classes),
        "step": card.step,
        "metrics": card.metrics,
        "parameters": _parameters(path),
        "bytes": path.stat().st_size,
        "data": card.data,
        "licence": card.licence,
    }


def _row(name: str, card: Card, path: Path) -> tuple[str, ...]:
    output = f"x{card.arguments.get('scale')}" if card.task == "sr" else f"{max(len(card.classes), 1)} classes"
    figures = [f"{key} {value:.4g}" for key, value in card.metrics.items() if isinstance(value, int | float)]
    protocol = card.metrics.get("protocol")
    if figures and protocol:
        figures[-1] += f" ({protocol}, {card.metrics['data']})" if card.metrics.get("data") else f" ({protocol})"
    size = f"{path.stat().st_size / 1000:.0f} kB"
    told = (", ".join(figures) or "-", card.licence or "-")
    cells = (name, card.task, output, f"{_parameters(path):,}", size, "embedded", *told)
    return tuple(printable(cell) for cell in cells)


def _parameters(path: Path) -> int:
    """Returns the number of parameters in a checkpoint, from its header alone."""
    from densekit.cards import read_bytes

    header = json.loads(read_bytes(path, header_only=True)[8:])
    tensors = (
        about["shape"]
        for name, about in header.items()
        if name != "__metadata__" and name.rpartition(".")[2] not in _NOT_LEARNT
    )
    return sum(map(math.prod, tensors))

"""`densekit models`: what there is, the trained networks apart from the architectures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from densekit.errors import ConfigError, suggest
from densekit.files import printable

if TYPE_CHECKING:
    from densekit.cards import Card

_HEADS = ("name", "task", "output", "size", "figures on validation data", "licence of the training data")


@click.command()
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each model on stdout.")
def models(pattern: str, as_json: bool) -> None:
    """Lists trained models and architectures.

    PATTERN selects by name, as in 'rdn*'. Trained models go into `predict -m NAME`. Architectures have no weights: a
    config names them for `train`.
    """
    from densekit.models import MODELS, model_names
    from densekit.pretrained import WEIGHTS, list_models, trained_cards

    trained, architectures = trained_cards(pattern), model_names(pattern)
    if not trained and not architectures:
        raise ConfigError(f"no model matches {printable(pattern)!r}{suggest(pattern, list_models())}")
    sizes = {name: (WEIGHTS / f"{name}.safetensors").stat().st_size for name in trained}
    if as_json:
        for name, card in trained.items():
            click.echo(json.dumps(_record(name, card, sizes[name]), ensure_ascii=False, allow_nan=False))
        for name in architectures:
            click.echo(json.dumps({"name": name, "kind": "architecture", "task": MODELS[name].task}))
        return
    if trained:
        rows = [_row(name, card, sizes[name]) for name, card in trained.items()]
        click.echo(_columns([_HEADS, *rows]))
    if trained and architectures:
        click.echo()
    if architectures:
        click.echo(_columns([("architecture", "task"), *((name, MODELS[name].task) for name in architectures)]))


def _record(name: str, card: Card, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "trained",
        "task": card.task,
        "model": card.model,
        "arguments": card.arguments,
        "classes": list(card.classes),
        "step": card.step,
        "metrics": card.metrics,
        "bytes": size,
        "data": card.data,
        "licence": card.licence,
    }


def _row(name: str, card: Card, size: int) -> tuple[str, ...]:
    output = f"x{card.arguments.get('scale')}" if card.task == "sr" else f"{max(len(card.classes), 1)} classes"
    figures = [f"{key} {value:.4g}" for key, value in card.metrics.items() if isinstance(value, int | float)]
    protocol = card.metrics.get("protocol")
    if figures and protocol:
        figures[-1] += f" ({protocol}, {card.metrics['data']})" if card.metrics.get("data") else f" ({protocol})"
    cells = (name, card.task, output, f"{size / 1000:.0f} kB", ", ".join(figures) or "-", card.licence or "-")
    return tuple(printable(cell) for cell in cells)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as lines whose cells stand in columns, never cut."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)

"""What may follow on a command line, for the shell's completion; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

TASKS = ("sr", "seg")


def complete_models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Returns the trained models that begin so, of the task of the command if it has one; else leaves it to files."""
    from densekit.pretrained import trained_cards

    task = _task_of(context)
    return _items((name for name, card in trained_cards().items() if task in (None, card.task)), incomplete)


def complete_encoders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Returns the encoders and trained models that begin so; else leaves it to files."""
    from densekit.models import MODELS
    from densekit.pretrained import trained_names

    return _items([*(name for name, entry in MODELS.items() if entry.encoder), *trained_names()], incomplete)


def complete_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Returns the architectures and trained models that begin so."""
    from densekit.pretrained import list_models

    return _items(list_models(), incomplete)


def complete_configs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Returns the shipped configs that begin so, of the task of the command; else leaves it to files."""
    from densekit.config import list_configs

    task = _task_of(context)
    return _items((name for name in list_configs() if task in (None, name.split("/")[0])), incomplete)


def _task_of(context: click.Context) -> str | None:
    """Returns the task whose group a command is in."""
    name = context.parent.info_name if context.parent else None
    return name if name in TASKS else None


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Returns the names that begin so; without any, what tells the shell to offer files."""
    found = [CompletionItem(name) for name in sorted(set(names)) if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]

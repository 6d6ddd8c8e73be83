"""From a file that others wrote to a network of ours."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from densekit.cards import Card
from densekit.checkpoint import build
from densekit.dialects.dialect import COUNTER, Dialect, Tensors, Translation
from densekit.dialects.files import Contents, read_contents
from densekit.dialects.note import read_note
from densekit.dialects.report import LoadReport
from densekit.dialects.table import FAMILIES, dialect_names, recognise
from densekit.errors import CheckpointError
from densekit.files import printable
from densekit.models import MODELS

SHOWN = 4  # names of a file that nothing knows, in the message
MAX_PREFIXES = 4  # in front of each other, as in "module.model.encoder.features.conv0.weight"
ROUNDING = 1e-14  # of a variance of about 1e-8, from which a difference of epsilons was taken and given back
AVERAGED = "ema"  # in the prefix of averaged weights, which are the ones to use


class UnknownWeights(CheckpointError):
    """Weights by names of no dialect."""

    def __init__(self, message: str, contents: Contents) -> None:
        super().__init__(message)
        self.contents = contents


def open_foreign(path: str | Path) -> tuple[nn.Module, Card, LoadReport]:
    """Returns the network that a foreign file holds the weights of, in float32, a card for it, and a report.

    Nothing is unpickled, the network is built from names and shapes, and every one of its tensors comes from the file;
    counters of batches, which old files lack, are the exception. What no dialect knows goes to spandrel, if installed.

    Raises:
        CheckpointError: damaged, unsafe, of no dialect known here, or not all of a network.
    """
    try:
        tensors, card, report = read_foreign(path)
    except UnknownWeights as unknown:
        return _of_spandrel(unknown, printable(path))
    net = build(card, tensors, report.source)
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return net, card, report


def _of_spandrel(unknown: UnknownWeights, source: str) -> tuple[nn.Module, Card, LoadReport]:
    """Returns the network that spandrel makes of weights that no dialect knows, as `open_foreign` does.

    Raises:
        CheckpointError: it is not installed, or knows none either.
    """
    from densekit.dialects import spandrel

    if not spandrel.is_installed():
        raise CheckpointError(f"{unknown}; spandrel knows many more: {spandrel.INSTALL}") from unknown
    _check_finite(unknown.contents.tensors, source)
    found = spandrel.open_with_spandrel(unknown.contents.tensors, source, unknown.contents.notes)
    if found is None:
        raise CheckpointError(f"{unknown}, and those of spandrel") from unknown
    return found


def read_foreign(path: str | Path) -> tuple[Tensors, Card, LoadReport]:
    """Returns the tensors of a foreign file by our names, a card, and a report.

    Names and shapes say what network it is; that the tensors are all of it, `densekit.checkpoint.build` makes sure. A
    file that densekit wrote brings the card that it was written with.

    Raises:
        CheckpointError: as `open_foreign`.
    """
    source = printable(path)
    contents = read_contents(path)
    recognised = _without_prefix(contents.tensors)
    if recognised is None:
        raise UnknownWeights(
            f"{source}: weights of no network known here ({_sample(contents.tensors)}); "
            f"known are files of {', '.join(dialect_names())}",
            contents,
        )
    dialect, tensors, prefix = recognised
    try:
        found = dialect.to_ours(dict(tensors))
        card, kept = read_note(contents.note, source) if contents.note else (_card_of(dialect, found), {})
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {str(error).removeprefix(f'{source}: ')}") from error
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        # Its names fit, its contents do not.
        fault = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{source}: begins like weights of {dialect.name}, but is not all of a network: {printable(fault)}"
        ) from error
    ours, filled = _completed(found.tensors, kept)
    _check_finite(ours, source)
    report = LoadReport(
        source,
        dialect.name,
        card.model,
        card.arguments,
        renamed={prefix + old: new for old, new in _renamed(tensors, found, prefix).items()},
        ignored={
            **{name: f"outside of {prefix!r}" for name in contents.tensors if not name.startswith(prefix)},
            **{prefix + name: why for name, why in found.ignored.items()},
        },
        filled=filled,
        notes=(*contents.notes, *([f"without the prefix {prefix!r}"] if prefix else []), *found.notes),
    )
    return ours, card, report


def _without_prefix(tensors: Tensors, prefix: str = "") -> tuple[Dialect, Tensors, str] | None:
    """Returns the dialect of weights, and the part of them that speaks it, from which this prefix was taken off.

    Wrappers such as DataParallel, Lightning modules and whole models put names in front: "module.", "encoder.".
    """
    dialect = recognise(tensors)
    if dialect is not None:
        return dialect, tensors, prefix
    if prefix.count(".") == MAX_PREFIXES:
        return None
    parts: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        head, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(head, {})[rest] = tensor
    tried = (_without_prefix(parts[head], f"{prefix}{head}.") for head in sorted(parts, key=_is_plain))
    return next((found for found in tried if found is not None), None)


def _is_plain(head: str) -> bool:
    return AVERAGED not in head


def _card_of(dialect: Dialect, found: Translation) -> Card:
    model, arguments = FAMILIES[dialect.family](found.tensors, found.hints)
    return Card(MODELS[model].task, model, arguments, bn_mode=found.bn_mode)


def _renamed(tensors: Tensors, found: Translation, prefix: str) -> dict[str, str]:
    """Returns the names that changed; behind a prefix that is every one."""
    if not prefix:
        return found.renamed
    return {name: found.renamed.get(name, name) for name in tensors if name not in found.ignored}


def _completed(tensors: Tensors, kept: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Returns tensors with the counters of batches that norms have and some dialects lack, and what was filled in.

    Args:
        tensors: by our names.
        kept: what a note knows of them.
    """
    filled = {}
    whole = dict(tensors)
    for name, tensor in tensors.items():
        if name in kept and is_rounded(kept[name], tensor):
            whole[name] = kept[name]
        counter = f"{name.removesuffix('.running_mean')}{COUNTER}"
        if name.endswith(".running_mean") and counter not in tensors:
            whole[counter] = kept.get(counter, torch.tensor(0))
            filled[counter] = f"{int(whole[counter])}, a counter of batches that the file lacks"
    return whole, filled


def is_rounded(exact: Tensor, found: Tensor) -> bool:
    """Says whether one tensor is the other but for the last bits of small numbers, as arithmetic on them gives."""
    return exact.shape == found.shape and exact.dtype == found.dtype and torch.allclose(exact, found, 1e-6, ROUNDING)


def _check_finite(tensors: Tensors, source: str) -> None:
    """Passes weights without NaN and infinity, with which every result would be NaN.

    Raises:
        CheckpointError: there are some.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f"{source}: {printable(name)} holds values that are not finite; training went wrong, take an older one"
            )


def _sample(tensors: Tensors) -> str:
    shown = [f"{printable(name)} {tuple(t.shape)}" for name, t in list(tensors.items())[:SHOWN]]
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    return ", ".join(shown) + more

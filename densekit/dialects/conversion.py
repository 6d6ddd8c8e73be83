"""From a file of any kind to a checkpoint of densekit, or to a file that another library reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from densekit.cards import Card, is_ours
from densekit.checkpoint import build, read_tensors, save_tensors
from densekit.dialects.dialect import Tensors
from densekit.dialects.reading import UnknownWeights, read_foreign
from densekit.dialects.report import LoadReport
from densekit.dialects.tiramisu import without_class
from densekit.dialects.writing import write_foreign
from densekit.errors import CheckpointError, ConfigError
from densekit.files import printable
from densekit.models import constructor_arguments, create_model, model_class

OWN = "densekit"
STORED = (torch.float32, torch.float16)  # what a checkpoint of ours has


@dataclass(frozen=True)
class Changes:
    """What a file does not say of its network, or says wrongly; None leaves it as it is.

    Attributes:
        mean, std: per channel, of images in 0..1; they become part of the network.
        drop_class: the number of a class that an FC-DenseNet is to lose, such as the void of 12 CamVid classes.
        classes: names, of a segmentation network, without the one that is dropped.
        licence: of the data that the weights come from.
        data: what they were trained on.
        value_range: the largest value of the images that a super-resolution network was trained on, 1 or 255; ours
            take and give 0..1.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    drop_class: int | None = None
    classes: Sequence[str] | None = None
    licence: str | None = None
    data: str | None = None
    value_range: float | None = None


def convert(
    source: str | Path, target: str | Path, *, to: str | None = None, changes: Changes | None = None
) -> tuple[Card, LoadReport]:
    """Writes the network of a file to another, and returns its card and what became of its tensors.

    Args:
        source: a checkpoint of densekit, or a file that others wrote; see `read_foreign`.
        target: replaced atomically.
        to: a dialect, or None for a checkpoint of densekit.
        changes: of the card.

    Raises:
        ConfigError: a dialect, a suffix or a change that this network has no place for.
        CheckpointError: a file that is damaged, unsafe, or not all of a network; the target stays as it is.
        OSError: the target's folder cannot be written.
    """
    tensors, card, report = _read(source)
    build(card, tensors, printable(source))
    card, tensors = _changed(card, tensors, changes or Changes())
    if to is not None:
        write_foreign(tensors, card, to, target)
    else:
        save_tensors(target, {name: _storable(tensor) for name, tensor in tensors.items()}, card)
    return card, report


def _read(source: str | Path) -> tuple[Tensors, Card, LoadReport]:
    if not is_ours(source):
        try:
            return read_foreign(source)
        except UnknownWeights as unknown:
            told = "networks that only spandrel knows predict from their own file and cannot be converted"
            raise CheckpointError(f"{unknown}; {told}") from unknown
    tensors, card = read_tensors(source)
    return tensors, card, LoadReport(printable(source), OWN, card.model, card.arguments)


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.dtype not in STORED else tensor


def _changed(card: Card, tensors: Tensors, changes: Changes) -> tuple[Card, Tensors]:
    """Returns card and tensors with what a user says of them; figures are dropped where results change.

    Raises:
        ConfigError: of another kind of network.
    """
    if changes.drop_class is not None:
        tensors, card = without_class(tensors, card, changes.drop_class)
    told: dict[str, Any] = {}
    arguments = dict(card.arguments)
    for key in ("mean", "std"):
        values = getattr(changes, key)
        if values is not None:
            if key not in constructor_arguments(model_class(card.model)):
                raise ConfigError(f"--{key}: {card.model} takes images in 0..1 as they are, without a {key}")
            arguments[key] = list(values)
    if arguments != card.arguments:
        with torch.device("meta"):  # which refuses statistics of another number of channels
            create_model(card.model, **arguments)
        told |= {"arguments": arguments, "metrics": {}}
    if changes.classes is not None:
        told["classes"] = _checked_classes(card, changes.classes)
    if changes.value_range is not None:
        if card.task != "sr":
            raise ConfigError(f"--value-range: for super-resolution, but {card.model} is for {card.task}")
        if changes.value_range != 1:
            told["metrics"] = {}
            tensors = _in_unit_range(tensors, changes.value_range)
    told |= {key: getattr(changes, key) for key in ("licence", "data") if getattr(changes, key) is not None}
    return dataclasses.replace(card, **told), tensors


def _checked_classes(card: Card, names: Sequence[str]) -> tuple[str, ...]:
    """Returns names of classes if there are as many as the network tells apart.

    Raises:
        ConfigError: there are not, or it is no segmentation network.
    """
    if card.task != "seg":
        raise ConfigError(f"--classes: for segmentation, but {card.model} is for {card.task}")
    import inspect

    default = inspect.signature(model_class(card.model)).parameters["num_classes"].default
    count = max(2, int(card.arguments.get("num_classes", default)))
    if len(names) != count:
        raise ConfigError(f"--classes: {len(names)} names, but {card.model} tells {count} classes apart")
    return tuple(names)


def _in_unit_range(tensors: Tensors, value_range: float) -> Tensors:
    """Returns weights that do to values in 0..1 what these do to larger ones.

    Convolutions, (P)ReLU and sums only: were all biases a hundredth, so would the output of a hundredth of the input.
    """
    return {name: t / value_range if name.endswith("bias") else t for name, t in tensors.items()}

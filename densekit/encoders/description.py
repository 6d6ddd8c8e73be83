"""What there is to know about an encoder before it is used: taps, sizes, costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densekit import models
from densekit.encoders.costs import forward_bytes, macs, parameters, training_bytes
from densekit.encoders.opening import PEER, Undrawn, every_index, on_paper
from densekit.errors import ConfigError
from densekit.files import printable
from densekit.models import MODELS, constructor_arguments, model_class

SIDE, CIFAR_SIDE = 224, 32  # of the pictures that papers count multiplications for, by the stem


@dataclass(frozen=True)
class Summary:
    """An encoder with the taps that it has by itself.

    Attributes:
        name: of the encoder.
        shape: (B, C, H, W) of the batch that multiplications are counted for.
        parameters, macs: of the encoder, without classifier or decoder.
        channels, reductions: of the taps.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    channels: tuple[int, ...]
    reductions: tuple[int, ...]


@dataclass(frozen=True)
class Tap:
    """A feature map that an encoder gives.

    Attributes:
        index: its number in `out_indices`.
        module: the module that makes it, or that reads it after norm and ReLU; empty where that is not known.
        shape: (C, H, W) for the picture that was asked about.
        reduction: of height and width.
        radius: how far it sees, in input pixels to each side; None where that is not known, or all of the picture.
    """

    index: int
    module: str
    shape: tuple[int, ...]
    reduction: int
    radius: int | None


@dataclass(frozen=True)
class Description:
    """An encoder in numbers.

    Attributes:
        name: of the encoder.
        shape: (B, C, H, W) of the batch that sizes, multiplications and bytes are for.
        taps: in order.
        parameters, macs: of the encoder with these taps.
        network_parameters, network_macs: of the network that it is part of, with classifier or decoder; None where
            there is none to compare with.
        multiple_of: what height and width should be multiples of, so that no tap rounds.
        forward_bytes: activations alive at once in a prediction.
        training_bytes: activations kept for the backward pass of a step, by memory policy.
    """

    name: str
    shape: tuple[int, ...]
    taps: tuple[Tap, ...]
    parameters: int
    macs: int
    network_parameters: int | None
    network_macs: int | None
    multiple_of: int
    forward_bytes: int
    training_bytes: dict[str, int]


def summarise(name: str) -> Summary:
    """Returns what an encoder gives and costs, for the pictures that its paper has.

    Raises:
        ConfigError: no such encoder.
    """
    encoder, side = on_paper(name), side_of(name)
    shape = (1, 3, side, side)
    counted = macs(encoder, shape)
    return Summary(name, shape, parameters(encoder), counted, _numbers(encoder.channels), _numbers(encoder.reductions))


def describe(
    name: str,
    *,
    size: tuple[int, int] | None = None,
    out_indices: Sequence[int] | None = None,
    in_channels: int = 3,
    whole: nn.Module | None = None,
    **arguments: Any,
) -> Description:
    """Returns all there is to know about an encoder; nothing is computed, and no memory taken.

    Args:
        name: of ours, or of timm's after "timm:".
        size: (height, width) of the picture; None takes that of the paper.
        out_indices: the taps; None, every one that the encoder has.
        in_channels: of the picture.
        whole: the network that the encoder is part of; None takes that of its name.
        arguments: of the encoder.

    Raises:
        ConfigError: no such encoder or argument, or a picture that is too small for it.
    """
    arguments["in_channels"] = in_channels
    indices = every_index(name, arguments) if out_indices is None else tuple(out_indices)
    encoder = on_paper(name, out_indices=indices, **arguments)
    height, width = size or 2 * (side_of(name),)
    shape = (1, in_channels, height, width)
    try:
        features, modules = taps_of(encoder, torch.empty(shape, device="meta"))
    except RuntimeError as error:  # a kernel or a norm that is left with nothing
        raise ConfigError(
            f"{printable(name)}: cannot take a picture of {height}x{width}; give one of {encoder.multiple_of} pixels a "
            "side or more"
        ) from error
    reductions = _numbers(encoder.reductions)
    whole = whole or _whole(name, arguments)
    return Description(
        name,
        shape,
        tuple(
            Tap(
                index,
                modules[place],
                tuple(features[place].shape[1:]),
                reductions[place],
                _radius(on_paper(name, out_indices=(index,), **arguments)),
            )
            for place, index in enumerate(indices)
        ),
        parameters(encoder),
        macs(encoder, shape),
        parameters(whole) if whole else None,
        macs(whole, shape) if whole else None,
        _number(encoder.multiple_of),
        forward_bytes(encoder, shape),
        training_bytes(encoder, shape),
    )


def side_of(name: str) -> int:
    """Returns the side of the square pictures that papers count an encoder's multiplications for."""
    is_small = name in MODELS and MODELS[name].arguments.get("stem") == "cifar"
    return CIFAR_SIDE if is_small else SIDE


def taps_of(encoder: nn.Module, x: Tensor) -> tuple[list[Tensor], list[str]]:
    """Returns the features of a batch, and the name of the module that makes each, or reads it where none does."""
    made: list[tuple[Tensor, str]] = []
    read: list[tuple[Tensor, str]] = []

    def note(name: str, module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        made.extend([(result, name)] if isinstance(result, Tensor) else [])
        read.extend((tensor, name) for tensor in given if isinstance(tensor, Tensor))

    hooks = [module.register_forward_hook(partial(note, name)) for name, module in encoder.named_modules() if name]
    with torch.no_grad():
        features: list[Tensor] = encoder(x)
    for hook in hooks:
        hook.remove()
    # The outermost module runs to its end last. A norm's result and that of a ReLU in place are one tensor.
    candidates = [*reversed(made), *read]
    names = [next((name for tensor, name in candidates if tensor is feature), "") for feature in features]
    return features, names


def _whole(name: str, arguments: dict[str, Any]) -> nn.Module | None:
    """Returns the network of an encoder's name, with its classifier or decoder; None where that is not comparable."""
    if name.startswith(PEER) or not arguments.keys() <= set(constructor_arguments(model_class(name))):
        return None
    with torch.device("meta"), Undrawn():
        return models.create_model(name, **arguments).to("meta").eval()


def _radius(encoder: nn.Module) -> int | None:
    return None if encoder.receptive_field is None else _number(encoder.receptive_field)


def _number(value: Any) -> int:
    return int(value)


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)

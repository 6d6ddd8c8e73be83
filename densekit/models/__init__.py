"""Every network by name: one literal table. Nothing here imports torch until a network is built."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from densekit.errors import ConfigError, suggest

if TYPE_CHECKING:
    from torch import nn


class Entry(NamedTuple):
    """Where a name's constructor is, the task it serves, the arguments that make the name, and its encoder if any."""

    task: str  # "sr", "seg" or "encoder" (classifier and feature extractor)
    target: str  # "module:Class" below densekit.models
    arguments: dict[str, Any]
    encoder: str = ""  # "module:Class" of the feature extractor with the same weights


MODELS: dict[str, Entry] = {
    "rdn": Entry("sr", "rdn:RDN", {}),
    "rdn_a": Entry("sr", "rdn:RDN", {"num_blocks": 20, "num_layers": 6, "growth_rate": 32}),
    "rdn_b": Entry("sr", "rdn:RDN", {"num_blocks": 16, "num_layers": 8, "growth_rate": 64}),
    "srdensenet": Entry("sr", "srdensenet:SRDenseNet", {}),
    "rrdbnet": Entry("sr", "rrdbnet:RRDBNet", {}),
    "rrdbnet_6b": Entry("sr", "rrdbnet:RRDBNet", {"num_blocks": 6}),
    "fc_densenet": Entry("seg", "fc_densenet:FCDenseNet", {}, "fc_densenet:FCDenseNetEncoder"),
    "fc_densenet56": Entry(
        "seg", "fc_densenet:FCDenseNet", {"growth_rate": 12, "num_layers": 4}, "fc_densenet:FCDenseNetEncoder"
    ),
    "fc_densenet67": Entry(
        "seg", "fc_densenet:FCDenseNet", {"growth_rate": 16, "num_layers": 5}, "fc_densenet:FCDenseNetEncoder"
    ),
    "fc_densenet103": Entry(
        "seg",
        "fc_densenet:FCDenseNet",
        {"growth_rate": 16, "num_layers": (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4)},
        "fc_densenet:FCDenseNetEncoder",
    ),
    "unet": Entry("seg", "smp:EncoderDecoder", {"decoder": "unet"}),
    "unetplusplus": Entry("seg", "smp:EncoderDecoder", {"decoder": "unetplusplus"}),
    "linknet": Entry("seg", "smp:EncoderDecoder", {"decoder": "linknet"}),
    "fpn": Entry("seg", "smp:EncoderDecoder", {"decoder": "fpn"}),
    "segformer": Entry("seg", "smp:EncoderDecoder", {"decoder": "segformer"}),
    "manet": Entry("seg", "smp:EncoderDecoder", {"decoder": "manet"}),
    "pspnet": Entry("seg", "smp:EncoderDecoder", {"decoder": "pspnet"}),
    "deeplabv3": Entry("seg", "smp:EncoderDecoder", {"decoder": "deeplabv3"}),
    "deeplabv3plus": Entry("seg", "smp:EncoderDecoder", {"decoder": "deeplabv3plus"}),
    "pan": Entry("seg", "smp:EncoderDecoder", {"decoder": "pan"}),
    "upernet": Entry("seg", "smp:EncoderDecoder", {"decoder": "upernet"}),
    "densenet": Entry("encoder", "densenet:DenseNet", {}, "densenet:DenseNetEncoder"),
    "densenet121": Entry(
        "encoder", "densenet:DenseNet", {"growth_rate": 32, "block_config": (6, 12, 24, 16)}, "densenet:DenseNetEncoder"
    ),
    "densenet161": Entry(
        "encoder", "densenet:DenseNet", {"growth_rate": 48, "block_config": (6, 12, 36, 24)}, "densenet:DenseNetEncoder"
    ),
    "densenet169": Entry(
        "encoder", "densenet:DenseNet", {"growth_rate": 32, "block_config": (6, 12, 32, 32)}, "densenet:DenseNetEncoder"
    ),
    "densenet201": Entry(
        "encoder", "densenet:DenseNet", {"growth_rate": 32, "block_config": (6, 12, 48, 32)}, "densenet:DenseNetEncoder"
    ),
    "densenet264": Entry(
        "encoder", "densenet:DenseNet", {"growth_rate": 32, "block_config": (6, 12, 64, 48)}, "densenet:DenseNetEncoder"
    ),
    "densenet_cifar": Entry(
        "encoder",
        "densenet:DenseNet",
        {
            "stem": "cifar",
            "num_classes": 10,
            "depth": 40,
            "growth_rate": 12,
            "bn_size": None,
            "compression": 1.0,
            "num_init_features": 16,
        },
        "densenet:DenseNetEncoder",
    ),
    "densenet_bc_cifar": Entry(
        "encoder",
        "densenet:DenseNet",
        {"stem": "cifar", "num_classes": 10, "depth": 100, "growth_rate": 12},
        "densenet:DenseNetEncoder",
    ),
    "rdnet_tiny": Entry("encoder", "rdnet:RDNet", {}, "rdnet:RDNetEncoder"),
    "rdnet_small": Entry(
        "encoder",
        "rdnet:RDNet",
        {
            "num_init_features": 72,
            "growth_rate": (64, *(128,) * 8, 240, 240),
            "block_config": (3,) * 11,
            "strides": (1, 2, 2, 1, 1, 1, 1, 1, 1, 2, 1),
        },
        "rdnet:RDNetEncoder",
    ),
    "rdnet_base": Entry(
        "encoder",
        "rdnet:RDNet",
        {
            "num_init_features": 120,
            "growth_rate": (96, 128, *(168,) * 7, 336, 336),
            "block_config": (3,) * 11,
            "strides": (1, 2, 2, 1, 1, 1, 1, 1, 1, 2, 1),
        },
        "rdnet:RDNetEncoder",
    ),
    "rdnet_large": Entry(
        "encoder",
        "rdnet:RDNet",
        {
            "num_init_features": 144,
            "growth_rate": (128, 192, *(256,) * 8, 360, 360),
            "block_config": (3,) * 12,
            "strides": (1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1),
        },
        "rdnet:RDNetEncoder",
    ),
}


def model_names(pattern: str = "*", task: str | None = None) -> list[str]:
    """Returns the names of the architectures that match a shell pattern, of one task or all."""
    names = fnmatch.filter(MODELS, pattern)
    return sorted(name for name in names if task in (None, MODELS[name].task))


def model_class(name: str) -> type[nn.Module]:
    """Returns the class behind a name.

    Raises:
        ConfigError: no such name.
    """
    if name not in MODELS:
        raise ConfigError(f"model {name!r}: no such architecture{suggest(name, MODELS)} (densekit models lists all)")
    return import_class(MODELS[name].target)


def encoder_class(name: str) -> type[nn.Module]:
    """Returns the class of the feature extractor behind a name.

    Raises:
        ConfigError: no such name, or a network without one.
    """
    encoders = sorted(key for key, entry in MODELS.items() if entry.encoder)
    if name not in encoders:
        raise ConfigError(f"encoder {name!r}: no such encoder{suggest(name, encoders)} ({', '.join(encoders)})")
    return import_class(MODELS[name].encoder)


def create_model(name: str, /, **arguments: Any) -> nn.Module:
    """Returns a network with random weights: `create_model("rdn", scale=2)`.

    Args:
        name: one of `model_names()`.
        arguments: of its constructor; they win over those that the name stands for. And `memory`, how training memory
            is spent: one of `densekit.blocks.MEMORY_POLICIES`, or a budget such as "2GiB".

    Raises:
        ConfigError: no such name, policy or budget, or an argument that the constructor does not take.
    """
    constructor = model_class(name)
    check_arguments(name, constructor, arguments)
    return _built(constructor, {**MODELS[name].arguments, **arguments})


def create_encoder(name: str, /, **arguments: Any) -> nn.Module:
    """Returns a feature extractor with random weights: `create_encoder("densenet121", out_indices=(1, 2, 3))`.

    Args:
        name: a network that has one; its weights fit.
        arguments: of the encoder's constructor, and `memory`, as in `create_model`; they win over those that the name
            stands for.

    Raises:
        ConfigError: no such name, policy or budget, or an argument that the constructor does not take.
    """
    constructor = encoder_class(name)
    check_arguments(name, constructor, arguments)
    known = constructor_arguments(constructor)
    # What the name says of the classifier alone, its number of classes, is not for the encoder.
    defaults = {key: value for key, value in MODELS[name].arguments.items() if key in known}
    return _built(constructor, {**defaults, **arguments})


def _built(constructor: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    """Returns a network that spends training memory as `memory` says, which is no matter of its constructor."""
    memory = arguments.pop("memory", None)
    net = constructor(**arguments)
    if memory is not None:
        from densekit.blocks import set_memory

        set_memory(net, memory)
    return net


def check_arguments(name: str, constructor: type[nn.Module], arguments: Iterable[str]) -> None:
    """Passes names that a constructor takes, and `memory`, which every network has.

    Raises:
        ConfigError: it does not take one of them.
    """
    known = [*constructor_arguments(constructor), "memory"]
    for key in arguments:
        if key not in known:
            raise ConfigError(f"model.{key}: {name} takes no such argument{suggest(key, known)} ({', '.join(known)})")


def import_class(target: str) -> type[nn.Module]:
    """Returns the class that a target of the table, "module:Class", points to."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(f"densekit.models.{module}"), attribute)


def constructor_arguments(constructor: type[nn.Module]) -> list[str]:
    """Returns the names of the arguments that a network's constructor takes."""
    import inspect

    return [name for name in inspect.signature(constructor).parameters if name != "self"]

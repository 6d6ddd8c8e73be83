"""From a name or a file to an encoder: ours, timm's, and those inside trained networks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from densekit import models
from densekit.cards import Card
from densekit.errors import ConfigError, suggest
from densekit.files import printable
from densekit.models import MODELS, constructor_arguments, encoder_class
from densekit.pretrained import open_model

PEER = "timm:"  # before the name of an encoder of timm


class PeerEncoder(nn.Module):
    """An encoder of timm, with random weights, by the contract of ours.

    Args:
        name: as timm knows it, such as "resnet50".
        in_channels: of the images.
        out_indices: the taps, as timm numbers them; None, all.

    Shapes: (B, in_channels, H, W) -> list of (B, channels[i], H / reductions[i], W / reductions[i]). What it subtracts
    and divides by is not part of it, unlike in ours.

    Raises:
        ConfigError: no such encoder, or one whose features are no maps.
    """

    receptive_field = None

    def __init__(self, name: str, *, in_channels: int = 3, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        chosen = {} if out_indices is None else {"out_indices": tuple(out_indices)}
        try:
            body: Any = _create_peer(name, features_only=True, in_chans=in_channels, **chosen)
        except Exception as error:  # each model of timm has its own kind
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{PEER}{name}: cannot give features: {printable(error)}; choose another") from error
        self.body = body
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        self.reductions: tuple[int, ...] = tuple(body.feature_info.reduction())
        self.multiple_of: int = max(self.reductions)

    def forward(self, x: Tensor) -> list[Tensor]:
        try:
            features: list[Tensor] = self.body(x)
        except AssertionError as error:  # such as a size that patches do not fill
            raise ConfigError(f"timm refuses a batch of {tuple(x.shape)}: {printable(error)}") from error
        for feature, channels in zip(features, self.channels, strict=True):
            if feature.ndim != 4 or feature.shape[1] != channels:
                raise ConfigError(
                    f"timm gives a feature of shape {tuple(feature.shape)}; expected (B, {channels}, H, W); choose an "
                    "encoder whose features are maps"
                )
        return features


def peer_classifier(name: str) -> nn.Module:
    """Returns a classifier of timm with random weights: (B, 3, H, W) -> logits.

    The last factor of each residual starts at one, not at zero, behind which no layer would get a gradient.

    Raises:
        ConfigError: no such model.
    """
    try:
        return _create_peer(name, zero_init_last=False)
    except TypeError:  # it has no such factors
        return _create_peer(name)


def _create_peer(name: str, **arguments: Any) -> nn.Module:
    import timm

    if not timm.is_model(name):  # also keeps timm from reading the name as an address
        raise ConfigError(f"{PEER}{printable(name)}: timm knows no such model{suggest(name, timm.list_models())}")
    return timm.create_model(name, pretrained=False, **arguments)


def build(name: str, **arguments: Any) -> nn.Module:
    """Returns an encoder with random weights: "densenet121" and so on, or "timm:resnet50".

    Args:
        name: of ours, or of timm's after "timm:".
        arguments: of `densekit.models.create_encoder`; of timm's, `in_channels` and `out_indices` alone.

    Raises:
        ConfigError: no such encoder or argument.
    """
    if not name.startswith(PEER):
        return models.create_encoder(name, **arguments)
    known = ("in_channels", "out_indices")
    for key in arguments:
        if key not in known:
            raise ConfigError(f"{key}: {printable(name)} takes no such argument ({', '.join(known)})")
    return PeerEncoder(name.removeprefix(PEER), **arguments)


def is_encoder(name: str) -> bool:
    """Says whether a name is that of an encoder without weights: one of ours, or after "timm:"."""
    return name.startswith(PEER) or (name in MODELS and bool(MODELS[name].encoder))


@dataclass(frozen=True)
class Found:
    """An encoder that a name or a file stands for, not built yet.

    Attributes:
        name: of the encoder.
        arguments: of its constructor, without `out_indices`.
        card: of the weights; None where they are random.
        net: the network that they are those of, as a whole; None likewise.
        seed: of random weights.
    """

    name: str
    arguments: dict[str, Any]
    card: Card | None = None
    net: nn.Module | None = None
    seed: int = 0

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """The numbers of all taps, those alone whose weights are there."""
        every = every_index(self.name, self.arguments)
        if self.net is None:
            return every
        there = self._weights().keys()
        return tuple(i for i in every if self._on_paper(i).state_dict().keys() <= there)

    def encoder(self, out_indices: Sequence[int]) -> nn.Module:
        """Returns the encoder with its weights.

        Raises:
            ConfigError: no such taps.
        """
        known = self.indices
        missing = sorted(set(out_indices) - set(known))
        if missing:
            raise ConfigError(f"{printable(self.name)}: no tap {missing[0]}; there are {', '.join(map(str, known))}")
        with seeded(self.seed):
            encoder = build(self.name, **self.arguments, out_indices=tuple(out_indices))
        if self.net is not None:
            weights = self._weights()
            encoder.load_state_dict({key: weights[key] for key in encoder.state_dict()})
        return encoder

    def _weights(self) -> dict[str, Tensor]:
        inner = getattr(self.net, "encoder", self.net)
        return inner.state_dict() if isinstance(inner, nn.Module) else {}

    def _on_paper(self, index: int) -> nn.Module:
        return on_paper(self.name, out_indices=(index,), **self.arguments)


def find_encoder(name_or_path: str, *, seed: int | None = None) -> Found:
    """Returns what a name or a file stands for.

    Args:
        name_or_path: of trained weights of any kind, see `densekit.pretrained.open_model`; or, with a seed, of an
            encoder without weights.
        seed: of random weights; None refuses them.

    Raises:
        ConfigError: no such model; random weights without a seed, or a seed for trained ones; a network without an
            encoder.
        CheckpointError: weights that are missing, damaged, unsafe or unknown.
    """
    if is_encoder(name_or_path):
        if seed is None:
            raise ConfigError(
                f"{printable(name_or_path)} is an encoder without weights; give a file of weights, or "
                "--random-weights SEED for features that nothing was learnt for"
            )
        return Found(name_or_path, {}, seed=seed)
    if seed is not None:
        raise ConfigError(f"{printable(name_or_path)}: random weights are for names of densekit encoder list alone")
    net, card = open_model(name_or_path)
    return encoder_in(net, card)


def encoder_in(net: nn.Module, card: Card) -> Found:
    """Returns the encoder inside a network.

    Args:
        net: with its weights; an encoder itself, or with one in its attribute `encoder`.
        card: says what it is.

    Raises:
        ConfigError: the network has no encoder.
    """
    entry = MODELS.get(card.model)
    if entry is None or not (entry.encoder or hasattr(net, "encoder")):
        raise ConfigError(f"{printable(card.model)} has no encoder; those that have one: densekit encoder list")
    arguments = {**entry.arguments, **card.arguments}
    name = card.model
    if not entry.encoder:
        name = arguments.get("encoder") or inspect.signature(type(net)).parameters["encoder"].default
        chosen = {key: value for key, value in arguments.items() if value is not None}
        stride: Any = net.encoder
        arguments = {**MODELS[name].arguments, **chosen, "output_stride": stride.output_stride}
    known = set(constructor_arguments(encoder_class(name))) - {"out_indices"}
    return Found(name, {key: value for key, value in arguments.items() if key in known}, card, net)


def on_paper(name: str, **arguments: Any) -> nn.Module:
    """Returns an encoder as it predicts, whose tensors have no memory.

    Raises:
        ConfigError: no such encoder or argument.
    """
    if name.startswith(PEER):  # some of timm's read numbers off tensors while they are built
        return build(name, **arguments).to("meta").eval()
    with torch.device("meta"), Undrawn():
        return build(name, **arguments).to("meta").eval()


class Undrawn(TorchFunctionMode):
    """Leaves weights as they are where they would be drawn at random, which takes most of the time on meta tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def every_index(name: str, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the numbers of all taps; where a stem's, 0, is not given by itself, it is among them."""
    channels: Any = on_paper(name, **arguments).channels
    count = len(channels)
    try:
        on_paper(name, out_indices=tuple(range(count + 1)), **arguments)
    except ConfigError:
        return tuple(range(count))
    return tuple(range(count + 1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Lets torch draw from a seed inside, and leaves its state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield

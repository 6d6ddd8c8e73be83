"""How much the layers of a trained dense block use what each earlier layer made, as their weights tell it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from densekit.blocks import DenseBlock
from densekit.errors import ConfigError

Reader: TypeAlias = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Reuse:
    """The feature reuse of a dense block.

    Attributes:
        name: of the block in its network.
        sources: what makes maps: the block's input, then its layers.
        targets: what reads them: its layers, then what reads the block's output, if that is one convolution or linear
            layer of all of its maps.
        weights: mean absolute weight from a source to a target, weights[source][target]; NaN where they are not
            connected.
    """

    name: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]


def feature_reuse(net: nn.Module, *, in_channels: int = 3) -> list[Reuse]:
    """Returns the feature reuse of every dense block of a network, in the order of its modules.

    The weight from source s to target t is the mean absolute weight with which the first convolution of t that mixes
    channels reads the maps of s: the L1 norm by the number of maps, and of the kernel's weights. Norms in between are
    not counted, as in the paper.

    Args:
        net: stays as it is.
        in_channels: of its images.

    Raises:
        ConfigError: no dense block in it.

    Source: Huang et al., Densely Connected Convolutional Networks (CVPR 2017), figure 5.
    """
    blocks = {name: module for name, module in net.named_modules() if isinstance(module, DenseBlock)}
    if not blocks:
        raise ConfigError("the network has no dense block, so there is no feature reuse to show")
    after = _readers_after(net, list(blocks), in_channels)
    return [_reuse_of(name, block, after[name]) for name, block in blocks.items()]


def _reuse_of(name: str, block: DenseBlock, reader: tuple[str, Reader] | None) -> Reuse:
    widths = [block.in_channels]
    columns: list[tuple[str, list[float]]] = []
    for layer_name, layer in block.named_children():
        mixing = next((part for part in layer.modules() if _reads(part, sum(widths))), None)
        assert isinstance(mixing, Reader), f"{name}.{layer_name} reads its maps in no way known here"
        columns.append((layer_name, _means(mixing.weight, widths)))
        widths.append(block.growth_rate)
    if reader is not None and _reads(reader[1], sum(widths)):
        columns.append((reader[0], _means(reader[1].weight, widths)))
    sources = ("input", *(layer_name for layer_name, _ in block.named_children()))
    rows = [
        tuple(means[place] if place < len(means) else math.nan for _, means in columns) for place in range(len(sources))
    ]
    return Reuse(name, sources, tuple(target for target, _ in columns), tuple(rows))


def _reads(module: nn.Module | None, channels: int) -> bool:
    """Says whether a module mixes just so many channels."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels == channels and module.groups == 1
    return isinstance(module, nn.Linear) and module.in_features == channels


def _means(weight: Tensor, widths: list[int]) -> list[float]:
    """Returns the mean absolute weight of each run of input channels."""
    return [part.abs().double().mean().item() for part in torch.split(weight.detach(), widths, dim=1)]


def _readers_after(net: nn.Module, names: list[str], in_channels: int) -> dict[str, tuple[str, Reader] | None]:
    """Returns the convolution or linear layer that runs first after each block, by the blocks' names."""
    ran: list[str] = []
    twin = copy.deepcopy(net).to("meta").eval()
    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | DenseBlock):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    side = sensible_side(net)
    with torch.no_grad():
        twin(torch.empty(1, in_channels, side, side, device="meta"))
    found: dict[str, tuple[str, Reader] | None] = {}
    for name in names:
        follows = [other for other in ran[ran.index(name) + 1 :] if other not in names] if name in ran else []
        module = net.get_submodule(follows[0]) if follows else None
        found[name] = (follows[0], module) if isinstance(module, Reader) else None
    return found


def sensible_side(net: nn.Module, about: int = 64) -> int:
    """Returns the side of a square picture that a network takes: about as large, and a multiple of what it asks for."""
    multiple_of, min_size = (int(getattr(net, key, 1)) for key in ("multiple_of", "min_size"))
    return math.ceil(max(about, min_size) / multiple_of) * multiple_of

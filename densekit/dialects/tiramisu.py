"""FC-DenseNet in the words of bfortuner/pytorch_tiramisu, and of its authors' Lasagne code, SimJeg/FC-DenseNet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from densekit.cards import Card
from densekit.dialects.dialect import Dialect, Tensors, Translation
from densekit.dialects.naming import Rows, count
from densekit.errors import CheckpointError, ConfigError

EPS = 1e-5  # of our norms; Lasagne's inv_std has its own, 1e-4, inside
NORM = ("bias", "weight", "running_mean", "running_var")  # Lasagne's beta, gamma, mean and inv_std
CONV = ("weight", "bias")


def _layers(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Returns the rows of the layers of a dense block, which pytorch_tiramisu counts from 0."""
    return [
        (f"{theirs}.layers.{{l}}.{part}", f"{ours}.denselayer{{l+1}}.{own}")
        for part, own in (("norm", "norm1"), ("conv", "conv1"))
    ]


TIRAMISU = Rows(
    ("firstconv", "conv0"),
    *_layers("denseBlocksDown.{b}", "down_blocks.{b}"),
    ("transDownBlocks.{b}.norm", "transitions_down.{b}.norm"),
    ("transDownBlocks.{b}.conv", "transitions_down.{b}.conv"),
    *_layers("bottleneck.bottleneck", "bottleneck"),
    ("transUpBlocks.{b}.convTrans", "transitions_up.{b}"),
    *_layers("denseBlocksUp.{b}", "up_blocks.{b}"),
    ("finalConv", "classifier"),
)
NORMALIZED = (
    "pytorch_tiramisu normalizes pictures outside of the network, which weights do not show; this network takes them "
    "as they are, so where it was trained like that, convert with --mean 0.41189,0.42513,0.43267 "
    "--std 0.27414,0.28507,0.28285"
)
RECALIBRATE = (
    "the authors' code never updated its averages, so the network predicts with the statistics of batches (bn_mode "
    "batch); make running ones: densekit bn recalibrate FILE.npz --data TRAINING_PICTURES -o NEW.safetensors"
)


def describe(tensors: Tensors, hints: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name and arguments of the FC-DenseNet whose weights these are; its dropout is the default's."""
    num_pools = count(tensors, "down_blocks.")
    blocks = [
        *(f"down_blocks.{i}" for i in range(num_pools)),
        "bottleneck",
        *(f"up_blocks.{i}" for i in range(num_pools)),
    ]
    num_init_features, in_channels = tensors["conv0.weight"].shape[:2]
    return "fc_densenet", {
        "num_classes": len(tensors["classifier.weight"]),
        "in_channels": in_channels,
        "num_init_features": num_init_features,
        "growth_rate": len(tensors["down_blocks.0.denselayer1.conv1.weight"]),
        "num_pools": num_pools,
        "num_layers": [count(tensors, f"{block}.denselayer") for block in blocks],
        **hints,
    }


def without_class(tensors: Tensors, card: Card, index: int) -> tuple[Tensors, Card]:
    """Returns an FC-DenseNet's weights and card without one of its classes, such as the void of 12 CamVid classes.

    The others keep their order. What the network gave the pixels of that class it now gives another one.

    Args:
        tensors: by our names, as `read_foreign` gives them.
        card: likewise.
        index: of the class, from 0.

    Raises:
        ConfigError: no such class, or another network.
    """
    weight = tensors.get("classifier.weight")
    if weight is None or weight.ndim != 4:
        raise ConfigError(f"a class can be dropped from an FC-DenseNet, and {card.model} is none")
    count = len(weight)
    if count < 3:
        raise ConfigError(f"no class can be dropped from {count}; a network needs 2")
    if not 0 <= index < count:
        raise ConfigError(f"class {index}: {card.model} tells {count} classes apart, 0 to {count - 1}")
    kept = [i for i in range(count) if i != index]
    rows = {name: tensors[name][kept] for name in ("classifier.weight", "classifier.bias")}
    arguments = {**card.arguments, "num_classes": count - 1}
    classes = tuple(card.classes[i] for i in kept) if card.classes else ()
    palette = tuple(card.palette[i] for i in kept) if card.palette else ()
    return {**tensors, **rows}, replace(card, arguments=arguments, classes=classes, palette=palette, metrics={})


def _is_tiramisu(tensors: Mapping[str, Tensor]) -> bool:
    layers = ("firstconv", "denseBlocksDown.0.layers.0.conv", "transUpBlocks.0.convTrans", "finalConv")
    return all(f"{layer}.weight" in tensors for layer in layers)


def _from_tiramisu(tensors: Tensors) -> Translation:
    return replace(TIRAMISU.translate(tensors), notes=(NORMALIZED,))


def _to_tiramisu(tensors: Tensors, card: Card) -> Tensors:
    if any(card.arguments.get(name) is not None for name in ("mean", "std")):
        raise CheckpointError(
            "networks of tiramisu take normalized pictures, and this one normalizes them itself by its mean and std"
        )
    return TIRAMISU.theirs(tensors)


def _is_simjeg(tensors: Mapping[str, Tensor]) -> bool:
    first = [tensors.get(f"arr_{i}") for i in range(8)]
    return [tensor.ndim for tensor in first if tensor is not None] == [4, 1, 1, 1, 1, 1, 4, 1]


def _from_simjeg(tensors: Tensors) -> Translation:
    """Names what `lasagne.layers.get_all_param_values` gave in the order of the layers.

    Convolutions are correlations already, since the authors' code turns flip_filters off. Its Deconv2DLayer has the
    default, by which it correlates the spread-out maps with its kernels; torch's transposed convolution lays kernels
    down at every pixel, which is the same with kernels turned round. Both have them as (in, out, H, W).

    Source: SimJeg/FC-DenseNet `layers.py`, `FC-DenseNet.py`; Lasagne `TransposedConv2DLayer`, `BatchNormLayer`.
    """
    arrays = [tensors[f"arr_{i}"] for i in range(len(tensors))]
    ours: Tensors = {}
    renamed: dict[str, str] = {}
    for name, array in zip(_names(arrays), arrays, strict=True):
        renamed[f"arr_{len(renamed)}"] = name
        if name.endswith("running_var"):
            array = (array.double() ** -2 - EPS).to(array.dtype)
        elif name.startswith("transitions_up") and name.endswith("weight"):
            array = array.flip(2, 3)
        ours[name] = array
    return Translation(ours, renamed, notes=(RECALIBRATE,), bn_mode="batch")


def _names(arrays: Sequence[Tensor]) -> Iterator[str]:
    """Yields our name of each array.

    A norm has four vectors, a convolution a kernel and a vector. Norm and convolution are a dense layer if it is 3x3,
    a transition down if it is 1x1; a convolution alone is the first, a transition up, or the classifier.
    """
    num_pools = sum(array.ndim == 4 and array.shape[-1] == 1 for array in arrays) - 1  # and the classifier
    block, layer, down, up, index = "down_blocks.0", 0, 0, 0, 0
    while index < len(arrays):
        norm = ""
        num_vectors = 0 if arrays[index].ndim == 4 else len(NORM)
        is_1x1 = arrays[index + num_vectors].shape[-1] == 1
        if num_vectors and is_1x1:
            norm, conv = f"transitions_down.{down}.norm", f"transitions_down.{down}.conv"
            down, layer = down + 1, 0
            block = f"down_blocks.{down}" if down < num_pools else "bottleneck"
        elif num_vectors:
            layer += 1
            norm, conv = f"{block}.denselayer{layer}.norm1", f"{block}.denselayer{layer}.conv1"
        elif is_1x1:
            conv = "classifier"
        elif index == 0:
            conv = "conv0"
        else:
            conv, block, layer, up = f"transitions_up.{up}", f"up_blocks.{up}", 0, up + 1
        if norm:
            yield from (f"{norm}.{part}" for part in NORM)
        yield from (f"{conv}.{part}" for part in CONV)
        index += num_vectors + len(CONV)


DIALECTS = (
    Dialect("tiramisu", "fc_densenet", _is_tiramisu, _from_tiramisu, _to_tiramisu),
    Dialect("simjeg", "fc_densenet", _is_simjeg, _from_simjeg),
)

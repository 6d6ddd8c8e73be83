"""DenseNet in the words of torchvision, timm, SMP, MONAI, gpleiss and andreasveit; Keras' are in `keras`.

Our names are those of torchvision today, so most dialects differ by a few words. Layers are Huang et al.'s in all.

Source: of gpleiss and andreasveit the repositories efficient_densenet_pytorch and densenet-pytorch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from densekit.cards import Card
from densekit.dialects.describing import find_share, implied_arguments, shortest
from densekit.dialects.dialect import COUNTER, Dialect, Tensors, Translation, rename
from densekit.dialects.naming import Rows
from densekit.errors import CheckpointError
from densekit.models import MODELS
from densekit.models.densenet import blocks_of_depth

STEM = "features.conv0.weight"
FIRST = "features.denseblock1.denselayer1"
BARE = "without a classifier (num_classes 0): the network gives pooled features, and its weights fit an encoder"
WRAPPED = (
    "its classifier is one of several layers, of which the others have no weights and are left out, such as CheXNet's "
    "sigmoid: the network gives logits"
)
TARGET = "densenet:DenseNet"  # in the table of networks
PARTS = ("norm1", "conv1", "norm2", "conv2")
VEIT_PARTS = ("bn1", "conv1", "bn2", "conv2")
GENERAL = "densenet"
SHARES = (0.5, 1.0, *(n / parts for parts in (10, 20, 100) for n in range(1, parts)))  # of maps that transitions keep
STRUCTURE = ("growth_rate", "block_config", "num_init_features", "bn_size", "compression", "stem")


def describe(tensors: Tensors, hints: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name of the DenseNet whose weights these are, and the arguments that its name does not imply.

    Args:
        tensors: by our names.
        hints: arguments that shapes do not tell.

    Raises:
        CheckpointError: not a DenseNet of ours.
        KeyError, ValueError: not all of one.
    """
    found = {**structure(tensors), **hints}
    names = {name: implied(name) for name, entry in MODELS.items() if entry.target == TARGET and name != GENERAL}
    return shortest(found, {**names, GENERAL: implied(GENERAL)}, STRUCTURE, GENERAL)


def implied(name: str) -> dict[str, Any]:
    """Returns the arguments that a name stands for as `structure` gives them."""
    full = implied_arguments(name)
    if full["depth"] is not None:
        full["block_config"] = list(blocks_of_depth(full["depth"], full["bn_size"]))
    full["num_init_features"] = full["num_init_features"] or 2 * full["growth_rate"]
    return full


def structure(tensors: Tensors) -> dict[str, Any]:
    """Returns the arguments of a DenseNet that its shapes tell.

    Raises:
        CheckpointError: a stem, a bottleneck or transitions that ours cannot have.
    """
    stem = tensors[STEM]
    if stem.ndim != 4:
        raise CheckpointError(f"{STEM} is {tuple(stem.shape)}, for pictures of {stem.ndim - 2} dimensions; expected 2")
    if "features.conv1.weight" in tensors:
        raise CheckpointError("a deep stem of three convolutions, as in timm's densenet264d; networks here have one")
    if (stem.shape[-1], "features.norm0.weight" in tensors) not in ((7, True), (3, False)):
        raise CheckpointError(f"{STEM} is {tuple(stem.shape)}; expected 7x7 with a norm behind it, or 3x3 without")
    blocks = _block_config(tensors)
    has_bottleneck = f"{FIRST}.conv2.weight" in tensors
    growth_rate = tensors[f"{FIRST}.conv{1 + has_bottleneck}.weight"].shape[0]
    bn_size = Fraction(tensors[f"{FIRST}.conv1.weight"].shape[0], growth_rate) if has_bottleneck else None
    if bn_size is not None and bn_size.denominator > 1:
        raise CheckpointError(f"a bottleneck of {float(bn_size):.3g} times the growth rate; expected a whole number")
    return {
        "num_classes": tensors["classifier.weight"].shape[0] if "classifier.weight" in tensors else 0,
        "in_channels": stem.shape[1],
        "growth_rate": growth_rate,
        "block_config": blocks,
        "num_init_features": stem.shape[0],
        "bn_size": None if bn_size is None else int(bn_size),
        "compression": _compression(tensors, len(blocks)),
        "stem": "imagenet" if stem.shape[-1] == 7 else "cifar",
    }


def _block_config(tensors: Tensors) -> list[int]:
    """Returns the layers of each dense block."""
    counts: dict[int, int] = {}
    for name in tensors:
        match = re.match(r"features\.denseblock(\d+)\.denselayer(\d+)\.norm1\.weight$", name)
        if match:
            block, layer = map(int, match.groups())
            counts[block] = max(counts.get(block, 0), layer)
    return [counts[block] for block in range(1, max(counts) + 1)]


def _compression(tensors: Tensors, num_blocks: int) -> float:
    """Returns a share of maps with which every transition keeps as many as it does, a simple one if there is any.

    Raises:
        CheckpointError: there is none.
    """
    weights = [tensors[f"features.transition{i}.conv.weight"] for i in range(1, num_blocks)]
    sizes = [(weight.shape[1], weight.shape[0]) for weight in weights]
    share = find_share(sizes, SHARES)
    if share is None:
        raise CheckpointError(f"transitions from {sizes} channels (in, out); expected one share that all of them keep")
    return share


def _layers(theirs: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the rows of a dense layer's norms and convolutions, the names of which are in our order."""
    return [
        (f"{theirs}.{name}", f"features.denseblock{{b}}.denselayer{{l}}.{part}")
        for name, part in zip(names, PARTS, strict=True)
    ]


OWN_LAYER = "features.denseblock{b}.denselayer{l}"
LEGACY = _layers(OWN_LAYER, ("norm.1", "conv.1", "norm.2", "conv.2"))  # of torchvision's first files
MONAI = [*_layers(f"{OWN_LAYER}.layers", PARTS), ("class_layers.out", "classifier")]
GPLEISS = [("features.norm_final", "features.norm5")]
ANDREASVEIT = [
    ("conv1", "features.conv0"),
    *((theirs, ours.replace("{l}", "{l+1}")) for theirs, ours in _layers("block{b}.layer.{l}", VEIT_PARTS)),
    ("trans{b}.bn1", "features.transition{b}.norm"),
    ("trans{b}.conv1", "features.transition{b}.conv"),
    ("bn1", "features.norm5"),
    ("fc", "classifier"),
]


# What the networks of a library are, and whether one is: what is written for it is to load there.
Limit = tuple[str, Callable[[Mapping[str, Any]], bool]]
BOTTLENECK: Limit = ("bottlenecks", lambda found: found["bn_size"] is not None)
IMAGENET: Limit = ("the ImageNet stem", lambda found: found["stem"] == "imagenet")
HALVING: Limit = ("transitions that keep half of the maps", lambda found: found["compression"] == 0.5)
HEAD: Limit = ("a classifier", lambda found: found["num_classes"] > 0)
TWICE: Limit = ("a stem of 2 k maps", lambda found: found["num_init_features"] == 2 * found["growth_rate"])
FOUR: Limit = ("four dense blocks", lambda found: len(found["block_config"]) == 4)
CIFAR: Limit = (
    "the CIFAR stem of 2 k maps, three blocks of one length, and bottlenecks of 4 k or none",
    lambda found: (
        found["stem"] == "cifar"
        and found["num_init_features"] == 2 * found["growth_rate"]
        and found["block_config"] == found["block_config"][:1] * 3
        and found["bn_size"] in (None, 4)
    ),
)


def check_limits(tensors: Tensors, dialect: str, *limits: Limit) -> None:
    """Passes a network that a dialect's library can build.

    Raises:
        CheckpointError: it cannot.
    """
    found = structure(tensors)
    lacking = [text for text, holds in limits if not holds(found)]
    if lacking:
        raise CheckpointError(f"networks of {dialect} have {lacking[0]}, but this one has not; not written")


def _wrapped_head(names: Iterable[str]) -> str | None:
    """Returns what stands before the names of a classifier's tensors in a Sequential, "classifier.0.", or None.

    Where other layers in it have weights, too, they are no classifier of ours.
    """
    found = [name.removesuffix("weight") for name in names if re.fullmatch(r"classifier\.\d+\.weight", name)]
    return found[0] if len(found) == 1 else None


def _unwrapped(found: Translation) -> Translation:
    """Returns weights with a classifier out of its Sequential, if it is in one."""
    head = _wrapped_head(found.tensors)
    if head is None:
        return found
    moved = {name: name.replace(head, "classifier.", 1) for name in found.tensors if name.startswith(head)}
    tensors = {moved.get(name, name): tensor for name, tensor in found.tensors.items()}
    return dataclasses.replace(found, tensors=tensors, renamed={**found.renamed, **moved}, notes=(WRAPPED,))


def _has(*names: str) -> Callable[[Mapping[str, Tensor]], bool]:
    return lambda tensors: all(name in tensors for name in names)


def _is_torchvision(tensors: Mapping[str, Tensor]) -> bool:
    has_head = "classifier.weight" in tensors or _wrapped_head(tensors) is not None
    return has_head and _has(STEM, f"{FIRST}.conv1.weight")(tensors)


def _from_timm_features(tensors: Tensors) -> Translation:
    return rename(tensors, lambda name: name.replace("features_", "features.", 1))


def _dialect(
    name: str,
    recognises: Callable[[Mapping[str, Tensor]], bool],
    rows: Sequence[tuple[str, str]],
    *limits: Limit,
    read: Callable[[Tensors], Translation] | None = None,
    counters: bool = True,
) -> Dialect:
    """Returns a dialect that differs by names alone.

    Args:
        name: as in `Dialect`.
        recognises: as in `Dialect`.
        rows: of names, theirs and ours.
        limits: what its networks have.
        read: what translates them to ours, if the rows do not.
        counters: whether its norms count batches.
    """
    table = Rows(*rows)
    translate = read or table.translate

    def to_ours(tensors: Tensors) -> Translation:
        found = _unwrapped(translate(tensors))
        return found if "classifier.weight" in found.tensors else dataclasses.replace(found, notes=(BARE,))

    def to_theirs(tensors: Tensors, card: Card) -> Tensors:
        check_limits(tensors, name, *limits)
        return table.theirs({n: t for n, t in tensors.items() if counters or not n.endswith(COUNTER)})

    return Dialect(name, "densenet", recognises, to_ours, to_theirs)


BC = (BOTTLENECK, IMAGENET, HALVING)
# The names of timm's and SMP's networks are torchvision's; a file without a classifier is taken for SMP's, and one of
# timm's feature extractor for timm's. Early files of gpleiss have torchvision's early names.
DIALECTS: tuple[Dialect, ...] = (
    _dialect("monai", _has(STEM, f"{FIRST}.layers.conv1.weight"), MONAI, *BC, HEAD),
    _dialect(
        "gpleiss",
        _has(STEM, "features.norm_final.weight"),
        GPLEISS,
        BOTTLENECK,
        HEAD,
        read=Rows(*GPLEISS, *LEGACY).translate,
    ),
    _dialect("torchvision-legacy", _has(STEM, f"{FIRST}.conv.1.weight"), LEGACY, *BC, HEAD, counters=False),
    _dialect("torchvision", _is_torchvision, [], *BC, HEAD),
    _dialect("smp", _has(STEM, f"{FIRST}.conv1.weight"), [], *BC, FOUR),
    _dialect("timm", _has(STEM.replace("features.", "features_")), [], *BC, TWICE, read=_from_timm_features),
    _dialect("andreasveit", _has("conv1.weight", "block1.layer.0.conv1.weight"), ANDREASVEIT, CIFAR, HEAD),
)

"""RDNet in the words of timm, which are ours, and of its authors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from densekit.cards import Card
from densekit.dialects.describing import find_share, implied_arguments, shortest
from densekit.dialects.dialect import Dialect, Tensors, Translation, rename
from densekit.dialects.naming import count
from densekit.errors import CheckpointError
from densekit.models import MODELS

TARGET = "rdnet:RDNet"  # in the table of networks
GENERAL = "rdnet_tiny"
STRUCTURE = (
    "growth_rate", "block_config", "strides", "squeeze_from", "num_init_features", "expansion", "compression",
)  # fmt: skip
MULTIPLE = 8  # of the channels inside a layer and behind a transition
SHARES = (0.5, *(n / 10 for n in range(1, 11)))
EXPANSIONS = (4.0, *(n / 2 for n in range(1, 17)))
STEM = "stem.0.weight"
HEADLESS = "without a classifier: its weights fit an encoder only"


def describe(tensors: Tensors, hints: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name of the RDNet whose weights these are, and the arguments that its name does not imply.

    Raises:
        CheckpointError: not an RDNet of ours.
        KeyError, IndexError: not all of one.
    """
    found = {**structure(tensors), **hints}
    names = {name: implied_arguments(name) for name, entry in MODELS.items() if entry.target == TARGET}
    return shortest(found, names, STRUCTURE, GENERAL)


def structure(tensors: Tensors) -> dict[str, Any]:
    """Returns the arguments of an RDNet that its shapes tell.

    Raises:
        CheckpointError: widths that no one expansion or compression gives.
    """
    stages = range(count(tensors, "dense_stages."))
    blocks = [f"dense_stages.{stage}.{2 if stage else 0}.dense_block" for stage in stages]
    shrinking = [tensors[f"dense_stages.{stage}.1.weight"] for stage in stages[1:]]
    widening = [tensors[f"{block}0.layers.layers.2.weight"] for block in blocks]
    compression = find_share([_channels(weight) for weight in shrinking], SHARES, MULTIPLE)
    expansion = find_share([_channels(weight) for weight in widening], EXPANSIONS, MULTIPLE)
    if compression is None or expansion is None:
        raise CheckpointError("an RDNet whose transitions, or layers, have no common ratio of channels; expected one")
    squeezing = [stage for stage, block in enumerate(blocks) if f"{block}0.layers.layers.5.fc.weight" in tensors]
    found = {
        "in_channels": tensors[STEM].shape[1],
        "growth_rate": [len(tensors[f"{block}0.gamma"]) for block in blocks],
        "block_config": [count(tensors, block) for block in blocks],
        "strides": [1, *(weight.shape[-1] for weight in shrinking)],
        "squeeze_from": min(squeezing, default=len(stages)),
        "num_init_features": tensors[STEM].shape[0],
        "expansion": expansion,
        "compression": compression,
    }
    if "head.fc.weight" in tensors:
        found["num_classes"] = len(tensors["head.fc.weight"])
    return found


def _channels(weight: Tensor) -> tuple[int, int]:
    return weight.shape[1], weight.shape[0]


def _translated(tensors: Tensors, pattern: str, ours: str) -> Translation:
    found = rename(tensors, lambda name: re.sub(pattern, ours, name))
    return found if "head.fc.weight" in found.tensors else dataclasses.replace(found, notes=(HEADLESS,))


def _from_timm(tensors: Tensors) -> Translation:
    return _translated(tensors, r"^(stem|dense_stages)_(\d+)\.", r"\1.\2.")  # the names of its feature extractor


def _from_authors(tensors: Tensors) -> Translation:
    return _translated(tensors, r"^stem\.stem\.", "stem.")


def _to_timm(tensors: Tensors, card: Card) -> Tensors:
    return tensors


def _to_authors(tensors: Tensors, card: Card) -> Tensors:
    return rename(tensors, lambda name: re.sub(r"^stem\.", "stem.stem.", name)).tensors


DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "timm",
        "rdnet",
        lambda tensors: (
            (STEM in tensors and "dense_stages.0.0.dense_block0.gamma" in tensors)
            or ("stem_0.weight" in tensors and "dense_stages_0.0.dense_block0.gamma" in tensors)
        ),
        _from_timm,
        _to_timm,
    ),
    Dialect(
        "naver-ai",
        "rdnet",
        lambda tensors: "stem.stem.0.weight" in tensors and "dense_stages.0.0.dense_block0.gamma" in tensors,
        _from_authors,
        _to_authors,
    ),
)

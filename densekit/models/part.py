"""Weights of a whole network for an encoder, which is a part of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # as torchvision's files of DenseNets have them


def keep_part(
    state: dict[str, Any], encoder: nn.Module, whole: type[nn.Module], arguments: Mapping[str, Any], prefix: str = ""
) -> None:
    """Removes from `state` what the whole network has and its encoder lacks, and renames torchvision's old keys.

    What neither has stays, so that strict loading finds it.

    Args:
        state: weights by key, changed in place.
        encoder: whose weights they are to be.
        whole: class of the network that the encoder is a part of.
        arguments: of its constructor.
        prefix: of the encoder's keys in `state`; others are left alone.
    """
    for key in [key for key in state if key.startswith(prefix) and OLD_NAME.search(key)]:
        state[OLD_NAME.sub(r"\1\2", key)] = state.pop(key)
    unknown = {key.removeprefix(prefix) for key in state if key.startswith(prefix)} - encoder.state_dict().keys()
    if not unknown:
        return
    with torch.device("meta"):
        known = whole(**arguments).state_dict().keys()
    for key in unknown & known:
        del state[prefix + key]

"""Freezing the statistics of batch norms."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def adopt_statistics(net: nn.Module, average: nn.Module) -> None:
    """Gives the batch norms of `net` the running statistics of `average`, which follow more than the last batches."""
    for own, averaged in zip(net.modules(), average.modules(), strict=True):
        if isinstance(own, _BatchNorm):
            own.load_state_dict({**own.state_dict(), **dict(averaged.named_buffers())})


def freeze_norms(net: nn.Module) -> None:
    """Lets batch norms use their running statistics, as in prediction, and keep them."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def has_norms(net: nn.Module) -> bool:
    """Says whether there are batch norms."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())

"""Freezing the statistics of batch norms."""

from __future__ import annotations

import torch
from torch import nn

from densekit.blocks.norms import batch_norms


@torch.no_grad()
def adopt_statistics(net: nn.Module, average: nn.Module) -> None:
    """Gives the batch norms of `net` the running statistics of `average`, which follow more than the last batches."""
    for own, averaged in zip(batch_norms(net), batch_norms(average), strict=True):
        own.load_state_dict({**own.state_dict(), **dict(averaged.named_buffers())})


def freeze_norms(net: nn.Module) -> None:
    """Lets batch norms use their running statistics, as in prediction, and keep them."""
    for norm in batch_norms(net):
        norm.eval()

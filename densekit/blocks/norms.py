"""Finding the batch norms of a network, whose statistics training, freezing and evaluation treat apart."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCH_NORMS: tuple[type[_BatchNorm], ...] = (nn.BatchNorm2d, nn.SyncBatchNorm)  # of maps; the same attributes


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """Returns the batch norms in a network, in the order of its modules."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]

"""Batch statistics that several processes share, as those of `torch.nn.SyncBatchNorm`, where norms are run by hand.

torch's own module asks the other processes at every norm, twice a step. In a dense block a map's statistics are asked
for once, when it is made, and what all its readers take away from its gradient once as well.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

Group: TypeAlias = "dist.ProcessGroup"


def group_of(norm: nn.Module) -> Group | None:
    """Returns the processes whose crops a norm in training takes its statistics of; None where it asks no other."""
    if type(norm) is not nn.SyncBatchNorm or not norm.training or not (dist.is_available() and dist.is_initialized()):
        return None
    group: Group | None = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def share_statistics(stats: Tensor, eps: float, group: Group) -> None:
    """Makes statistics of the crops of one process those of all.

    Args:
        stats: mean, 1 / sqrt(variance + eps), unbiased variance and number of values of each map, (4, c), in place.
        eps: of the norm.
        group: the processes.

    Source: Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (1979).
    """
    mean, _, unbiased, number = stats
    squares = torch.where(number > 1, unbiased * (number - 1), 0.0)  # of the distances from the mean
    own = torch.stack([mean, squares, number])
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, own, group)
    means, squares, numbers = torch.stack(found, dim=1)
    total = numbers.sum(0)
    mean = (means * numbers).sum(0) / total
    squares = squares.sum(0) + (numbers * (means - mean).square()).sum(0)
    stats.copy_(torch.stack([mean, torch.rsqrt(squares / total + eps), squares / (total - 1), total]))


def added_up(sums: Tensor, group: Group | None) -> Tensor:
    """Returns the sum of a tensor over the processes; the tensor itself where there is one alone."""
    if group is None:
        return sums
    sums = sums.contiguous().clone()
    dist.all_reduce(sums, group=group)
    return sums

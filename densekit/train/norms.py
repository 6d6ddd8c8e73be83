"""The statistics of batch norms: frozen while training, and those that are evaluated and kept."""

from __future__ import annotations

import copy

import torch
from torch import nn

from densekit import ranks
from densekit.blocks.norms import batch_norms
from densekit.config import Config
from densekit.errors import ConfigError
from densekit.evaluate.statistics import with_batch_statistics
from densekit.tasks import Task


@torch.no_grad()
def adopt_statistics(net: nn.Module, average: nn.Module) -> None:
    """Gives the batch norms of `net` the running statistics of `average`, which follow more than the last batches."""
    for own, averaged in zip(batch_norms(net), batch_norms(average), strict=True):
        own.load_state_dict({**own.state_dict(), **dict(averaged.named_buffers())})


def freeze_norms(net: nn.Module) -> None:
    """Lets batch norms use their running statistics, as in prediction, and keep them."""
    for norm in batch_norms(net):
        norm.eval()


def check_norms(net: nn.Module, config: Config) -> None:
    """Passes a network that has what `eval.bn_mode` speaks of.

    Raises:
        ConfigError: it has no batch norm, or one that a single picture leaves with one value.
    """
    if config.eval.bn_mode == "batch" and getattr(net, "pooled_norm", None):
        raise ConfigError(
            f"eval.bn_mode=batch: a batch norm of {config.model.name} gets one value of each picture, which has no "
            "statistics of its own; use running or recalibrated"
        )
    if config.eval.bn_mode != "running" and not batch_norms(net):
        raise ConfigError(f"eval.bn_mode={config.eval.bn_mode}: {config.model.name} has no batch norm; remove the key")


@torch.no_grad()
def kept_network(average: nn.Module, task: Task, config: Config) -> nn.Module:
    """Returns the network that a checkpoint holds: the averaged one, with new statistics where they are asked for.

    New ones are the cumulative averages over the crops of the first `eval.bn_batches` batches of the run, dropout off:
    a function of the weights, the seed and the data, whenever it is asked for. Of several processes rank 0's count.
    """
    if config.eval.bn_mode != "recalibrated":
        return average
    net = copy.deepcopy(average).eval()
    momenta = [norm.momentum for norm in batch_norms(net)]
    for norm in batch_norms(net):
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the cumulative average
    device = next(net.parameters()).device
    batches = task.train_batches(0)
    for number in range(config.eval.bn_batches):
        torch.manual_seed(config.train.seed * 1_000_003 + number)  # for what the task draws; the loop seeds each pass
        inputs, targets = next(batches)
        task.loss(net, (inputs.to(device), targets.to(device)))
    for norm, momentum in zip(batch_norms(net), momenta, strict=True):
        norm.momentum = momentum
    ranks.shared(net.buffers())
    return net.eval()


def scored_network(kept: nn.Module, config: Config) -> nn.Module:
    """Returns the network that is evaluated: the kept one, or a copy that uses the statistics of each picture."""
    return with_batch_statistics(kept) if config.eval.bn_mode == "batch" else kept

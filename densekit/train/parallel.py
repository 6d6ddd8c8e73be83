"""How several processes share one network: all weights in each of them (DDP), or a part in each (FSDP2).

What is saved and evaluated is always whole, so states and weights know nothing of the number of processes or of how
they shared the work. A run that goes on with as many processes in the same way ends with the same bytes. With another
number of them, or after a change between ddp and fsdp, it draws the same crops in the same order, and its results agree
to rounding alone; dropout is another where the number of forward passes in a step changes with that of the processes,
and so are the statistics of batch norms, which see the crops of their own process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from densekit import ranks
from densekit.blocks import RRDB, DenseBlock, ResidualDenseBlock, has_budget
from densekit.blocks.norms import batch_norms
from densekit.errors import ConfigError, DeviceError

# Buffers stay as they are: training does not look at running statistics, and where they count rank 0's are taken.
LEFT_ALONE: dict[str, Any] = {"forward_sync_buffers": False}
if "forward_sync_buffers" not in inspect.signature(DistributedDataParallel).parameters:
    LEFT_ALONE = {"broadcast_buffers": False}  # its older name, of which newer versions of torch warn
UNITS = (RRDB, ResidualDenseBlock, DenseBlock)  # whose weights are whole only while they compute


def synchronize_norms(net: nn.Module, device: str) -> nn.Module:
    """Returns `net` with batch norms whose statistics are of the crops of all processes; names of weights stay.

    Raises:
        ConfigError: there are none.
        DeviceError: several processes without GPUs.
    """
    if not batch_norms(net):
        raise ConfigError("train.sync_norm: the network has no batch norm; remove the key")
    if ranks.count() == 1:
        return net
    if torch.device(device).type != "cuda":
        raise DeviceError(
            f"train.sync_norm: batch norms are synchronized on GPUs alone, but {ranks.count()} processes train on "
            f"{device}; leave it out, or let the norms keep their statistics with train.freeze_norm_step"
        )
    return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(net))  # type: ignore[no-untyped-call]


def shard(net: nn.Module, device: str, *copies: nn.Module) -> None:
    """Leaves each process a part of every weight of `net`; of one process it leaves all.

    Each dense or residual block is made whole for its own forward and backward pass, the rest of the network for a
    whole step. Gradients and the states of an optimizer that is made afterwards are in parts too.

    Args:
        net: on `device`; its weights become contiguous, for FSDP knows no other layout.
        device: "cpu", "cuda", ...
        copies: of `net`, its average, say; they get the same parts, and compute only inside `whole`.

    Raises:
        ConfigError: a memory budget.
    """
    if ranks.count() == 1:
        return
    if has_budget(net):
        raise ConfigError(
            "model.memory: what a network in parts keeps cannot be counted; with train.parallel=fsdp name a policy: "
            "balanced, lean or min"
        )
    assert dist.group.WORLD is not None
    mesh = DeviceMesh.from_group(dist.group.WORLD, torch.device(device).type)
    net.to(memory_format=torch.contiguous_format)
    ranks.shared(parameter.detach() for parameter in net.parameters())  # as DDP does
    for unit in units(net):
        fully_shard(unit, mesh=mesh)
    fully_shard(net, mesh=mesh)
    for copy in copies:
        for name, parameter in net.named_parameters():
            path, _, leaf = name.rpartition(".")
            setattr(copy.get_submodule(path), leaf, nn.Parameter(parameter.detach().clone()))


def units(net: nn.Module) -> Iterator[nn.Module]:
    """Yields the outermost of the known blocks inside `net`, all of which compute in `forward` alone.

    A dense block whose layers hold dense blocks, as SRDenseNet's, gives these in place of itself.
    """
    for child in net.children():
        is_nest = isinstance(child, DenseBlock) and sum(isinstance(m, DenseBlock) for m in child.modules()) > 1
        if isinstance(child, UNITS) and not is_nest:
            yield child
        else:
            yield from units(child)


def make_forward(net: nn.Module, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Returns what calls `net`: itself, or compiled, and where several processes train, with a mean of gradients."""
    if isinstance(net, FSDPModule):
        if compiled:
            net.compile()
        return net
    forward: Callable[[Tensor], Tensor] = torch.compile(net) if compiled else net
    if ranks.count() > 1:
        assert isinstance(forward, nn.Module)
        forward = DistributedDataParallel(forward, **LEFT_ALONE)
    return forward


@contextmanager
def waiting(net: Callable[[Tensor], Tensor], more: bool) -> Iterator[None]:
    """Keeps gradients in their process, since `more` passes will add to them."""
    if more and isinstance(net, DistributedDataParallel):
        with net.no_sync():
            yield
        return
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(not more)
    yield


@contextmanager
def whole(net: nn.Module) -> Iterator[nn.Module]:
    """Gives a network whose weights are in parts all of them for a while, in every process.

    All processes must enter; inside each may compute what and as often as it likes.
    """
    parts = [
        (module, name, parameter)
        for module in net.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for module, name, parameter in parts:
        setattr(module, name, nn.Parameter(parameter.full_tensor().detach(), requires_grad=False))
    try:
        yield net
    finally:
        for module, name, parameter in parts:
            setattr(module, name, parameter)


def whole_state(value: Any) -> Any:
    """Returns a state with its tensors whole, on the CPU; in processes that write nothing, empty in their place.

    Args:
        value: what `state_dict` gives; tensors that are whole already stay as they are.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if ranks.rank() == 0 else full.new_empty(0)
    if isinstance(value, Mapping):
        return {key: whole_state(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_state(item) for item in value]
    return value


def load(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Puts a whole state back, of which each process keeps its parts.

    Raises:
        RuntimeError: it is that of another module.
    """
    own = module.state_dict()
    module.load_state_dict({name: part_of(tensor, own.get(name)) for name, tensor in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Puts a whole state back, of which each process keeps what belongs to its parts of the weights.

    Raises:
        ValueError: it is that of another optimizer.
    """
    own = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    parts = {
        index: {name: part_of(value, own.get(index)) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def part_of(value: Any, like: Tensor | None) -> Any:
    """Returns the part of a whole tensor that this process has of `like`; what is not split stays as it is."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        # every process has read the whole tensor, so that none needs to send
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value


def is_finite(module: nn.Module) -> bool:
    """Says whether all weights and buffers of a module are finite, those in other processes too."""
    tensors = (t.to_local() if isinstance(t, DTensor) else t for t in module.state_dict().values())
    return all(ranks.gathered(all(bool(tensor.isfinite().all()) for tensor in tensors)))

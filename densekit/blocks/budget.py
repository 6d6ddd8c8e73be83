"""What a network keeps for its backward pass, counted without computing, and the policies that fit a budget."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from densekit.blocks.memory import MEMORY_POLICIES, budget_of, show_bytes
from densekit.blocks.norms import batch_norms
from densekit.blocks.parts import autocast_dtype
from densekit.errors import ConfigError

log: logging.Logger = logging.getLogger("densekit")
SHOWN = 8  # parts that a line names one by one


@dataclass(frozen=True)
class MemoryPlan:
    """How a network spends training memory.

    Attributes:
        memory: the budget as it was asked for.
        shape: of the batch.
        policies: of each module that has one, by its name.
        expected: bytes that autograd will keep for the backward pass, but for weights, buffers and the batch itself.
    """

    memory: str
    shape: tuple[int, ...]
    policies: dict[str, str]
    expected: int

    def __str__(self) -> str:
        names: dict[str, list[str]] = defaultdict(list)
        for name, policy in self.policies.items():
            names[policy].append(name or "the network")
        parts = [
            f"{', '.join(names[policy]) if len(names[policy]) <= SHOWN else f'{len(names[policy])} parts'} {policy}"
            for policy in MEMORY_POLICIES
            if policy in names
        ]
        shape = "x".join(map(str, self.shape))
        return (
            f"memory={self.memory}: {'; '.join(parts)}: {show_bytes(self.expected)} of activations expected at {shape}"
        )


class Budget:
    """A forward pre-hook that fits a network's policies to a budget before its first training step, and larger ones.

    Args:
        memory: the budget, such as "2GiB".
    """

    def __init__(self, memory: str) -> None:
        self.memory = memory
        self.largest: int = 0

    def __call__(self, net: nn.Module, inputs: tuple[Any, ...]) -> None:
        is_step = net.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if is_step and inputs and isinstance(inputs[0], Tensor) and inputs[0].numel() > self.largest:
            fit_memory(net, inputs[0].shape, self.memory, dtype=inputs[0].dtype)
            self.largest = inputs[0].numel()


def set_memory(net: nn.Module, memory: str) -> None:
    """Gives every part of `net` that has one the policy `memory`; a budget chooses them at the first training step.

    Gradients of gradients, as penalties on them need, cost what they do with "speed" under every policy; a warning
    says so.

    Raises:
        ConfigError: neither a policy nor a budget.
    """
    size = budget_of(memory)
    for key, hook in list(net._forward_pre_hooks.items()):
        if isinstance(hook, Budget):
            del net._forward_pre_hooks[key]
    for module in spenders(net).values():
        module.memory = "speed" if size else memory  # type: ignore[assignment]
    if size:
        net.register_forward_pre_hook(Budget(memory))


def has_budget(net: nn.Module) -> bool:
    """Says whether a budget will choose the policies of `net`."""
    return any(isinstance(hook, Budget) for hook in net._forward_pre_hooks.values())


def fit_memory(net: nn.Module, shape: Sequence[int], memory: str, *, dtype: torch.dtype = torch.float32) -> MemoryPlan:
    """Gives the parts of `net` the fastest policies that fit a budget, and returns them.

    What each would keep is counted, not estimated. As long as it does not fit, "balanced" goes to one part after the
    other, what saves most first; then "lean", which computes 1x1 convolutions twice; then "min".

    Args:
        net: on any device; nothing in it is computed.
        shape: of a batch, (B, C, H, W).
        memory: the budget, such as "2GiB", or a policy, to learn what it keeps.
        dtype: of the batch. Under autocast the types are those that it makes.

    Raises:
        ConfigError: no budget, or one that "min" exceeds.
    """
    size, ledger = budget_of(memory), Ledger(net, tuple(shape), dtype)
    policies = ledger.fitting(size) if size else ledger.all_at(memory)
    plan = MemoryPlan(memory, tuple(shape), policies, ledger.total(policies))
    if size and plan.expected > size:
        raise ConfigError(
            f"memory={memory!r}: even 'min' keeps {show_bytes(plan.expected)} of activations at "
            f"{'x'.join(map(str, shape))}; raise the budget, or lower the batch (train.batch_size) or crop "
            "(train.crop_size)"
        )
    for name, module in spenders(net).items():
        module.memory = policies[name]  # type: ignore[assignment]
    if size:
        log.info("%s", plan)
    return plan


def spenders(net: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules inside `net` that have a memory policy, by their names."""
    return {name: module for name, module in net.named_modules() if hasattr(module, "memory")}


class Ledger:
    """What a network keeps under policies yet to be chosen.

    Args:
        net: stays as it is.
        shape: of the batch.
        dtype: of the batch.
    """

    def __init__(self, net: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.device: torch.device = torch.device("meta")
        self.mode: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        make: Callable[[Tensor], Tensor] = methodcaller("to", self.device)
        device = next(net.parameters()).device
        if autocast_dtype(device) is not None:  # which overlooks meta tensors; fake ones take three times as long
            # At its first backward pass autograd starts a thread for each device, and none can be forked from then on.
            # Fake tensors look like a device, so that pass comes before them.
            torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
            self.device, self.mode = device, (fake := FakeTensorMode(allow_non_fake_inputs=True))
            make = fake.from_tensor
        with self.mode:
            self.net: nn.Module = imitation(net, make)
        self.parts: dict[str, nn.Module] = spenders(self.net)
        self.shape: tuple[int, ...] = shape
        self.dtype: torch.dtype = dtype
        self.running: list[str] = [""]
        for name, module in self.parts.items():
            module.forward = self._noting(name, module.forward)
        self.counted: dict[tuple[str, ...], dict[str, int]] = {}

    def total(self, policies: dict[str, str]) -> int:
        """Returns the bytes that autograd keeps under `policies`."""
        return sum(self._count(policies).values())

    def all_at(self, policy: str) -> dict[str, str]:
        """Returns the same policy for each part."""
        return dict.fromkeys(self.parts, policy)

    def fitting(self, size: int) -> dict[str, str]:
        """Returns the fastest policies that keep at most `size` bytes, "min" everywhere if there are none."""
        before = "speed"
        for policy in MEMORY_POLICIES:  # the order in which they cost time
            if self.total(self.all_at(policy)) <= size:
                break
            before = policy
        low, high = self._count(self.all_at(policy)), self._count(self.all_at(before))
        saving = {name: high[name] - low[name] for name in self.parts}
        parts = [name for name in sorted(saving, key=lambda name: -saving[name]) if saving[name] > 0]
        fewest, most = 0, len(parts)
        while fewest < most:
            middle = (fewest + most) // 2
            fits = self.total(self.all_at(before) | dict.fromkeys(parts[:middle], policy)) <= size
            fewest, most = (fewest, middle) if fits else (middle + 1, most)
        if fewest == len(parts):
            return self.all_at(policy)
        return self.all_at(before) | dict.fromkeys(parts[:fewest], policy)

    def _noting(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `forward` of a part, which notes that the part is running."""

        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.running.append(name)
            try:
                return forward(*args, **kwargs)
            finally:
                self.running.pop()

        return wrapped

    def _count(self, policies: dict[str, str]) -> dict[str, int]:
        """Returns the bytes that each part is the first to keep, and those outside of them under ""."""
        key = tuple(policies.values())
        if key not in self.counted:
            for name, module in self.parts.items():
                module.memory = policies[name]  # type: ignore[assignment]
            with self.mode:
                x = torch.empty(self.shape, dtype=self.dtype, device=self.device)
                self.counted[key] = _kept(self.net, x, lambda: self.running[-1])
        return self.counted[key]


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Returns the bytes that autograd keeps of net(x) for the backward pass, but for weights, buffers and `x`."""
    return sum(_kept(net, x, lambda: "").values())


def _kept(net: nn.Module, x: Tensor, who: Callable[[], str]) -> dict[str, int]:
    """Returns the bytes that autograd keeps of net(x), by who was running when a tensor was kept first."""
    given = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers(), x)}
    kept: dict[int, tuple[str, torch.UntypedStorage]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in given:
            kept.setdefault(storage._cdata, (who(), storage))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = net(x)
    del output
    sizes: dict[str, int] = defaultdict(int)
    for name, storage in kept.values():
        sizes[name] += storage.nbytes()
    return sizes


def imitation(net: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """Returns a copy of `net` in training whose tensors have no memory, and whose hooks do nothing.

    What has hooks is run as it is, so they are to be there.

    Args:
        net: stays as it is.
        make: returns a tensor without memory like another.
    """
    memo: dict[int, Any] = {}
    for tensor in (*net.parameters(), *net.buffers()):
        memo[id(tensor)] = make(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(memo[id(tensor)], tensor.requires_grad)
    for module in net.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            memo[id(hooks)] = OrderedDict.fromkeys(hooks, _nothing)
    made = copy.deepcopy(net, memo)
    for module in batch_norms(made):
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]  # which keeps as much, and asks no other process
        if module.momentum is None:
            module.momentum = 0.1  # a cumulative average asks how many batches there were
    return made if made.training else made.train()


def _nothing(*_: Any) -> None:
    """Stands for a hook."""

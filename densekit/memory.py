"""How much memory there is, and how much a network needs."""

from __future__ import annotations

import itertools
import os
import resource
import sys
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(device: torch.device | str) -> int:
    """Returns the bytes that can still be allocated on a device, as far as the system tells.

    CUDA: free memory and what torch's allocator holds unused. Otherwise main memory: what the system has available, or
    what a cgroup limit over this process (container, batch job) leaves, file cache that can be dropped counted as free.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        fields = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
        system = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: half of what is built in
        system = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([system, *_cgroup_rests()]))


def peak_memory(device: torch.device | str) -> int:
    """Returns the most bytes that were in use at once: of the GPU's memory, or of main memory by this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def activation_bytes_per_pixel(module: nn.Module, in_channels: int = 3, dtype: torch.dtype | None = None) -> float:
    """Returns the peak of the tensors alive during a forward pass, input and output included, in bytes per input pixel.

    The module runs on a tiny input, on its own device and in its own mode, without gradients. Parameters are not
    counted, nor what the first run works out and keeps, nor what a kernel allocates inside itself.

    Args:
        module: maps (B, in_channels, H, W) to tensors.
        in_channels: of the input.
        dtype: of the input; by default that of the first weight.
    """
    weight = next(itertools.chain(module.parameters(), module.buffers()))
    multiple_of = getattr(module, "multiple_of", 1)
    size = -(-max(32, getattr(module, "min_size", 1)) // multiple_of) * multiple_of
    owned = [*module.parameters(), *module.buffers()]
    x = torch.rand(1, in_channels, size, size, device=weight.device, dtype=dtype or weight.dtype)
    with torch.no_grad():
        module(x)
        with LiveBytes(owned) as live:
            module(x.clone())  # the input counts
    return live.peak / size**2


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations make while the mode is on.

    Args:
        owned: whose storages are not counted.

    Attributes:
        now, peak: bytes of those that are still there, and the most at once. What a kernel allocates inside itself is
            not among them.
    """

    def __init__(self, owned: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in owned)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from importing its compiler for this mode, which costs 2 s; an older torch does not ask."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.is_mkldnn:  # weights packed once, without a storage to ask
                continue
            if (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes()).atexit = False
        return result

    def _add(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


def _cgroup_rests() -> Iterator[int]:
    """Yields the bytes left under each memory limit over this process, for cgroups of version 2 and 1."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, cache = CGROUP, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage = CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents[: len(group.relative_to(root).parts)]):
            try:
                allowed, used = (folder / limit).read_text(), int((folder / usage).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except OSError:  # the path is the host's, seen from inside a container
                continue
            if allowed.strip() != "max":
                yield int(allowed) - used + int(stat.get(cache, 0))

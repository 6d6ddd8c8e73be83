"""The processes that train together: how they find each other, which one this is, and what they tell each other.

A process alone is rank 0 of 1, and nothing here costs it anything.

torchrun starts all of them anew when one is lost (`--max-restarts`), and may start fewer or more of them when machines
go or come (`--nnodes=1:4`, with our `--resume`; that of torch 2.15 finds machines that come only where its environment
has TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1). A run goes on from its last state each time. With as many processes as before
it ends with the bytes of a run that was never disturbed; with another number it sees the same crops in the same order,
and `densekit.train.parallel` says what differs. `train.batch_size` is that of all processes, so it stays, and must be a
multiple of every number of them that may come up; of others they say so and end.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from densekit.errors import ConfigError, DeviceError
from densekit.files import printable

# To find each other: with torch's half an hour one that does not come holds up all the others.
TIMEOUT = datetime.timedelta(seconds=60)
# Later, to wait for one that still evaluates a large picture, say. One that was killed is noticed at once, for its
# connections end, and a machine that was cut off is noticed by torchrun.
PATIENCE = datetime.timedelta(minutes=30)
PORTS = range(15_000, 35_000)  # for jobs of SLURM, each its own


def rank() -> int:
    """Returns the number of this process, 0 for the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Returns how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Joins the processes that torchrun or SLURM has started, if one of them has; leaves them at the end.

    Args:
        device: "cpu" or "cuda"; of several GPUs each process on a machine takes its own.

    Raises:
        ConfigError: an environment that does not say where the others are.
        DeviceError: they cannot be reached, one of them is lost later, or a GPU is missing.
    """
    place = find_place(os.environ)
    if place is None or dist.is_initialized():
        yield
        return
    if device == "cuda":
        local = int(place["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise DeviceError(f"process {local} of this machine finds {torch.cuda.device_count()} GPUs; start fewer")
        torch.cuda.set_device(local)
    try:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=meeting_point(place, os.environ),
            rank=int(place["RANK"]),
            world_size=int(place["WORLD_SIZE"]),
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"process {place['RANK']} of {place['WORLD_SIZE']} cannot join the others at {place['MASTER_ADDR']}:"
            f"{place['MASTER_PORT']}: {printable(error)}"
        ) from error
    set_patience(PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or (type(error) is RuntimeError and "/gloo/" in str(error))):
            raise
        raise DeviceError(
            f"process {place['RANK']} of {place['WORLD_SIZE']} has lost the others: one of them ended, or cannot be "
            "reached any more; see what it says, and continue with --resume"
        ) from error
    finally:
        dist.destroy_process_group()


def set_patience(patience: datetime.timedelta) -> None:
    """Sets how long each process waits for the others from now on."""
    function = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # its name before torch 2.15
    function(patience)


def meeting_point(place: Mapping[str, str], environment: Mapping[str, str]) -> Any:
    """Returns the store in which the processes tell each other their addresses.

    torchrun keeps one over all restarts. The addresses of processes that were killed stay in it, and new ones would
    wait for them, so each start has a part of its own.

    Raises:
        RuntimeError: the others do not come.
    """
    is_torchruns = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch exports it without saying so
        place["MASTER_ADDR"],
        int(place["MASTER_PORT"]),
        int(place["WORLD_SIZE"]),
        is_master=place["RANK"] == "0" and not is_torchruns,
        timeout=TIMEOUT,
    )
    word = shared_word(store, int(place["RANK"]), int(place["WORLD_SIZE"]))
    return dist.PrefixStore(f"densekit {word}", store)  # type: ignore[attr-defined]


def shared_word(store: Any, rank: int, count: int, timeout: datetime.timedelta = TIMEOUT) -> str:
    """Returns a word that the processes of one start have in common, and with no earlier start.

    torchrun's count of restarts is no such word: each machine has its own, and where machines come or go it stays.
    So rank 0 makes one up, gives it to each process that asks, and is done when all have thanked it for that word:
    what processes of earlier starts have asked stays in the store, but they thank no more.

    Raises:
        RuntimeError: not all of them come in time.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if rank > 0:
        store.set(f"densekit asks {rank}", own)
        word: str = store.get(f"densekit answers {own}").decode()
        store.set(f"densekit thanks {word} {rank}", "")
        return word
    missing = set(range(1, count))
    while missing:
        for other in sorted(missing):
            if store.check([f"densekit thanks {own} {other}"]):
                missing.remove(other)
            elif store.check([f"densekit asks {other}"]):
                store.set(f"densekit answers {store.get(f'densekit asks {other}').decode()}", own)
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {min(missing)} does not come")
        time.sleep(0.01)
    return own


def find_place(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Returns torchrun's five variables, from torchrun or from a step of SLURM; None for a process alone.

    Raises:
        ConfigError: some of torchrun's are missing.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if "RANK" in environment and "WORLD_SIZE" in environment:
        missing = [name for name in names if name not in environment]
        if missing:
            raise ConfigError(f"RANK is set, but not {', '.join(missing)}; start with torchrun, or unset RANK")
        return {name: environment[name] for name in names}
    if "SLURM_PROCID" not in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return None
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", environment["SLURM_STEP_NODELIST"])
    assert first, "SLURM names no node"
    job = int(environment["SLURM_JOB_ID"])
    values = (
        environment["SLURM_PROCID"],
        environment["SLURM_STEP_NUM_TASKS"],
        environment["SLURM_LOCALID"],
        environment.get("MASTER_ADDR", first[1] + (first[2] or "")),
        environment.get("MASTER_PORT", str(PORTS[job % len(PORTS)])),
    )
    return dict(zip(names, values, strict=True))


def wait() -> None:
    """Returns when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def gathered(item: Any) -> list[Any]:
    """Returns the item of every process, in the order of their ranks."""
    if not dist.is_initialized():
        return [item]
    items: list[Any] = [None] * count()
    dist.all_gather_object(items, item)
    return items


def shared(tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors with those of rank 0."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)

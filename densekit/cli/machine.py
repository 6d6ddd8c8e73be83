"""What the machine offers: devices, processor, memory, places to write."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from densekit.cli.findings import FAIL, OK, WARN, Finding

LITTLE = 1 << 30  # bytes of memory or disk below which a warning is due
FEW_FILES = 256  # a loader with workers keeps many open
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")


def devices() -> Iterator[Finding]:
    """Yields the devices that torch sees."""
    import torch

    build = f"torch {torch.__version__}"
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        found = f"{torch.cuda.get_device_name(index)}, {free >> 20} of {total >> 20} MiB free, {bf16}"
        is_full = free < LITTLE
        yield Finding(
            f"cuda:{index}", WARN if is_full else OK, found, "end what else uses it, or --device cpu" if is_full else ""
        )
    if torch.backends.mps.is_available():
        yield Finding("mps", OK, "Metal")
    if not torch.cuda.device_count() and Path("/proc/driver/nvidia").is_dir():
        found = f"an NVIDIA driver is there, but {build} sees no GPU (built for CUDA {torch.version.cuda})"
        yield Finding("device", WARN, found, "install the torch of your driver: https://pytorch.org/get-started")
    else:
        chosen = "cuda" if torch.cuda.device_count() else "mps" if torch.backends.mps.is_available() else "cpu"
        yield Finding("device", OK, f"--device auto takes {chosen}; {build}")


def processor() -> Iterator[Finding]:
    """Yields what torch uses of the processor, and how many threads of it."""
    import torch

    name, flags = _cpuinfo()
    threads, cores = torch.get_num_threads(), _cores()
    chosen = [f"{key}={os.environ[key]}" for key in THREADS if key in os.environ]
    found = f"{name}, kernels {torch.backends.cpu.get_cpu_capability()}"
    found += f", has {' '.join(flags)}" if flags else ""
    yield Finding("cpu", OK, found)
    told = f"{threads} for {cores} cores" + (f" ({', '.join(chosen)})" if chosen else "")
    too_many = threads > cores
    advice = f"set OMP_NUM_THREADS={cores}: more threads than cores wait for each other" if too_many else ""
    yield Finding("threads", WARN if too_many else OK, told, advice)


def memory() -> Iterator[Finding]:
    """Yields how much main memory is left."""
    from densekit.memory import available_memory

    free = available_memory("cpu")
    advice = "free some; prediction takes smaller tiles meanwhile" if free < LITTLE else ""
    yield Finding("memory", WARN if advice else OK, f"{free >> 20} MiB available", advice)


def storage() -> Iterator[Finding]:
    """Yields where files can be written, and how many can be open."""
    places = {"temporary": Path(tempfile.gettempdir()), "this folder": Path.cwd()}
    for name, folder in places.items():
        free = shutil.disk_usage(folder).free
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            advice = "set TMPDIR to another" if name == "temporary" else "write elsewhere with -o"
            yield Finding(name, FAIL if name == "temporary" else WARN, f"{folder}: {error.strerror}", advice)
            continue
        is_little = free < LITTLE
        yield Finding(
            name, WARN if is_little else OK, f"{free >> 20} MiB free", "make room on this disk" if is_little else ""
        )
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if 0 <= limit < FEW_FILES:
            yield Finding("open files", WARN, f"{limit} at once", "ulimit -n 1024")


def hub() -> Iterator[Finding]:
    """Yields where models of the hub are kept; the embedded ones need none of it."""
    base = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")  # noqa: PTH118
    folder = Path(base).expanduser()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    offline = "; HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
    found = f"embedded models need no network; those of the hub are kept in {folder}{offline}"
    if os.access(nearest, os.W_OK | os.X_OK):
        yield Finding("hub", OK, found)
    else:
        yield Finding("hub", WARN, f"{found}, which cannot be written", "set HF_HOME to another folder")


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> tuple[str, list[str]]:
    """Returns the processor's name, and which of `FLAGS` it has, as Linux tells; elsewhere little."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    return known.get("model name", platform.machine()), [
        flag for flag in FLAGS if flag in known.get("flags", "").split()
    ]

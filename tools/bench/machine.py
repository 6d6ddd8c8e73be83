"""What the figures were taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = (
    "torch", "torchvision", "timm", "segmentation_models_pytorch", "spandrel", "onnxruntime", "openvino",
)  # fmt: skip
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")
SETTINGS = ("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "ONEDNN_", "DNNL_")  # which change the speed of all alike


def describe_machine() -> str:
    """Returns processor, cores, versions and load average in one line."""
    versions = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    settings = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(SETTINGS)]
    load = f"load average {os.getloadavg()[0]:.2f}"
    return "; ".join([describe_processor(), f"Python {platform.python_version()}", *versions, *settings, load])


def describe_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's name, the cores that this process may use, and its vector instructions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, flags = platform.processor() or platform.machine(), ""
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text("utf-8").splitlines() if ":" in line)
        known = {key.strip(): value.strip() for key, value in fields.items()}
        name = known.get("model name", name)
        flags = "".join(f", {flag}" for flag in FLAGS if flag in known.get("flags", "").split())
    return f"{name}, {cores} cores{flags}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

"""What is measured of a network: whose modules hold the weights, and in which form they run."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from fnmatch import fnmatch

from densekit.blocks import MEMORY_POLICIES
from tools.bench.cases import Case
from tools.bench.peers import PEERS

OURS = ""  # the source of variants that run our own modules
RUNTIMES = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}  # form -> its module
EXPORT = ("onnx", "onnxscript")  # what both need besides, for the file that they read
DTYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
        name: in the table.
        source: a name of `PEERS`, or `OURS`.
        form: a key of `tools.bench.forms.FORMS`.
        dtype: of weights and arithmetic, one of `DTYPES`.
        memory: the training memory policy of our modules.
    """

    name: str
    source: str
    form: str
    dtype: str = "fp32"
    memory: str = "speed"


def inference_variants(case: Case, dtype: str = "fp32", *, with_compile: bool = False) -> list[Variant]:
    """Returns the variants of a forward pass. The first is the baseline: the peer as it comes, NCHW, in fp32."""
    sources = _sources(case)
    first = sources[0]
    mark = "" if dtype == "fp32" else f" {dtype}"
    variants = [Variant(first or "eager", first, "NCHW")]
    for source in sources:
        name = (source or "eager") + mark
        if name != variants[0].name:
            variants.append(Variant(name, source, "NCHW", dtype))
        variants.append(Variant(f"{name} channels_last", source, "channels_last", dtype))
    variants.append(Variant("densekit" + mark, OURS, "densekit", dtype))
    if with_compile:
        variants.append(Variant("torch.compile" + mark, first, "torch.compile", dtype))
    return variants + [Variant(form + mark, first, form, dtype) for form in RUNTIMES]


def training_variants(case: Case, dtype: str = "fp32", *, with_compile: bool = False) -> list[Variant]:
    """Returns the variants of a training step. The first is the baseline: the peer as it comes, NCHW, in fp32.

    Without a peer that is our network under the first memory policy, which is plain concatenation.
    """
    mark = "" if dtype == "fp32" else f" {dtype}"
    sources = [(source, source, "speed") for source in _sources(case) if source != OURS]
    sources += [(f"densekit {policy}", OURS, policy) for policy in MEMORY_POLICIES]
    name, first, memory = sources[0]
    variants = [Variant(name, first, "NCHW", memory=memory)]
    for name, source, memory in sources:
        if name + mark != variants[0].name:
            variants.append(Variant(name + mark, source, "NCHW", dtype, memory))
        variants.append(Variant(f"{name}{mark} channels_last", source, "channels_last", dtype, memory))
    if with_compile:
        variants.append(Variant("torch.compile" + mark, first, "torch.compile", dtype))
    return variants


def select(variants: list[Variant], patterns: list[str] | None) -> list[Variant]:
    """Returns the variants whose names match one of the shell patterns, or all; the baseline always."""
    if not patterns:
        return variants
    return variants[:1] + [v for v in variants[1:] if any(fnmatch(v.name, pattern) for pattern in patterns)]


def absent(variant: Variant, device: str = "cpu") -> str:
    """Returns why a variant cannot run here, or an empty string: what is not installed, or what has no such form."""
    if variant.form == "OpenVINO" and device != "cpu":
        return f"OpenVINO does not run on {device}"
    if variant.form == "ONNX Runtime" and variant.dtype != "fp32":
        return f"ONNX Runtime is measured in fp32 alone, not {variant.dtype}"
    needed = [] if variant.source == OURS else [PEERS[variant.source].module]
    if variant.form in RUNTIMES:
        needed += [RUNTIMES[variant.form], *EXPORT]
    missing = [module for module in needed if not is_installed(module)]
    return f"not installed: {', '.join(missing)}" if missing else ""


def absent_peers(case: Case) -> dict[str, str]:
    """Returns peer -> what is not installed, for the peers of a case that are left out for it."""
    return {name: f"not installed: {PEERS[name].module}" for name in case.peers if not is_installed(PEERS[name].module)}


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _sources(case: Case) -> list[str]:
    return [name for name in case.peers if is_installed(PEERS[name].module)] or [OURS]

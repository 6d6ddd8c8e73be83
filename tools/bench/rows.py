"""Figures: one row for each variant of each network on each number of threads."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from tools.bench.cases import Case
from tools.bench.clock import Sample, middle
from tools.bench.variants import Variant

Result = dict[str, Any]
MEASURED, WRONG, FAILED, ABSENT = "measured", "wrong", "failed", "absent"


@dataclass(frozen=True)
class Row:
    """What was measured of a variant; None where there is no figure.

    Args:
        network, shape, variant, dtype, device, threads: what it is about.
        status: `MEASURED`; `WRONG`, another result than the baseline's, not timed; `FAILED`; `ABSENT`, not installed.
        note: why there are no figures.
        median_ms, min_ms, max_ms: processor time of all threads, or GPU time.
        wall_ms, wall_min_ms, wall_max_ms: median and ends of the time on the wall.
        ratio: the baseline's median through this one: above 1 is faster.
        fraction: of the convolution ceiling, 0..1: time of the operations at that rate through the median.
        error: largest difference from the baseline, as a share of its largest value.
        ready_s: seconds from built modules, or from the exported file, to the first result.
        export_s: seconds that writing that file took.
        peak_mib: rise of the resident memory, or of the GPU's, in that first call.
        saved_mib: what autograd keeps for the backward pass.
        gflop: of one call: convolutions and matrix products.
        conv_gflops, copy_gbps: the ceilings in the same rounds, of all threads together.
        load_before, load_after: average over one minute.
        rounds: of which the medians are taken.
    """

    network: str
    shape: tuple[int, ...]
    variant: str
    dtype: str
    device: str
    threads: int
    status: str
    note: str = ""
    median_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    wall_ms: float | None = None
    wall_min_ms: float | None = None
    wall_max_ms: float | None = None
    ratio: float | None = None
    fraction: float | None = None
    error: float | None = None
    ready_s: float | None = None
    export_s: float | None = None
    peak_mib: float | None = None
    saved_mib: float | None = None
    gflop: float | None = None
    conv_gflops: float | None = None
    copy_gbps: float | None = None
    load_before: float | None = None
    load_after: float | None = None
    rounds: int = 0


def empty_row(case: Case, variant: Variant, device: str, threads: int, status: str, note: str) -> Row:
    """Returns the row of a variant that was not measured."""
    return Row(case.name, case.shape, variant.name, variant.dtype, device, threads, status, note)


def make_row(
    case: Case, variant: Variant, device: str, threads: int, *, alone: Result, together: Result, baseline: str
) -> Row:
    """Returns the row of a variant.

    Args:
        case, variant, device, threads: what was measured.
        alone: result of its own process, with "export" where a file was written for it.
        together: result of the process in which all took turns.
        baseline: name of the variant that has ratio 1.
    """
    found = together["variants"][variant.name]
    for status in (ABSENT, FAILED, WRONG):
        if status in found:
            return empty_row(case, variant, device, threads, status, found[status])
    samples: list[Sample] = found["samples"]
    busy, wall = ([1e3 * sample[axis] for sample in samples] for axis in (0, 1))
    conv, copy = together["ceilings"][f"conv {variant.dtype}"], together["ceilings"]["copy"]
    flops = together["flops"]
    return Row(
        case.name,
        case.shape,
        variant.name,
        variant.dtype,
        device,
        threads,
        MEASURED,
        median_ms=statistics.median(busy),
        min_ms=min(busy),
        max_ms=max(busy),
        wall_ms=statistics.median(wall),
        wall_min_ms=min(wall),
        wall_max_ms=max(wall),
        ratio=middle(together["variants"][baseline]["samples"]) / middle(samples),
        fraction=flops / _rate(conv) / middle(samples),
        error=found["error"] if math.isfinite(found["error"]) else None,
        ready_s=alone.get("ready"),
        export_s=alone.get("export"),
        peak_mib=_mib(alone.get("peak")),
        saved_mib=_mib(alone.get("saved")),
        gflop=flops / 1e9,
        conv_gflops=_rate(conv) * _lanes(device, threads) / 1e9,
        copy_gbps=_rate(copy) * _lanes(device, threads) / 1e9,
        load_before=together["load"][0],
        load_after=together["load"][1],
        rounds=len(samples),
    )


def is_fault(row: Row) -> bool:
    """Whether the run must not end well: a wrong result or a failure, not a library that is missing."""
    return row.status in (WRONG, FAILED)


def _rate(ceiling: Result) -> float:
    """Returns operations or bytes in a second of processor time, or of GPU time."""
    return float(ceiling["work"]) / middle(ceiling["samples"])


def _lanes(device: str, threads: int) -> int:
    """Returns by how much seconds of `_rate` exceed those on the wall: processor time is that of all threads."""
    return threads if device == "cpu" else 1


def _mib(count: int | None) -> float | None:
    return None if count is None else count / 2**20

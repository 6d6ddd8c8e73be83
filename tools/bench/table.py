"""Rows as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tools.bench.rows import MEASURED, Row

MISSING = "–"
LEGEND = (
    "Times are {clock}; all variants of a network take turns in one process, and the median of the rounds counts. "
    "Ratio: the first variant's median through this one, above 1 is faster. Of ceiling: time that the operations take "
    "at the rate of a 3x3 convolution 64 to 64 measured in the same rounds, through the median. Error: largest "
    "difference from the first variant, as a share of its largest {value}. Peak: rise of the memory in use in {call}."
)
READY = " Ready in: from built modules, or the exported file, to the first result, in a process of its own."
SAVED = " Saved: bytes that autograd keeps for the backward pass."


def to_markdown(rows: Sequence[Row], machine: str, title: str, *, is_training: bool = False) -> str:
    """Returns the machine, a table for each number of threads, and what the columns mean."""
    parts = [f"# {title}", machine]
    for (device, threads), group in groupby(rows, key=lambda row: (row.device, row.threads)):
        members = list(group)
        parts.append(f"## {_head(device, threads)}")
        parts.append("\n".join(_table(members, is_training)))
        parts += _ceilings(members)
    is_gpu = any(row.device == "cuda" for row in rows)
    legend = LEGEND.format(
        clock="the GPU's" if is_gpu else "processor time of all threads",
        value="gradient, of a small input in fp64" if is_training else "value",
        call="the first step, in a process of its own" if is_training else "the first call",
    )
    parts.append(legend + (SAVED if is_training else READY))
    return "\n\n".join(parts) + "\n"


def cells(row: Row, *, is_training: bool) -> list[str]:
    """Returns the texts of a row, one for each column of `columns`."""
    if row.status != MEASURED:
        return [row.network, row.variant, f"{row.status}: {row.note}", *[MISSING] * (len(columns(is_training)) - 3)]
    last = _number(row.saved_mib, 0) if is_training else _ready(row)
    return [
        row.network,
        row.variant,
        milliseconds(row.median_ms),
        f"{milliseconds(row.min_ms)}..{milliseconds(row.max_ms)}",
        _number(row.ratio, 2),
        _number(row.fraction, 2),
        MISSING if row.error is None else f"{row.error:.1e}",
        last,
        _number(row.peak_mib, 0),
    ]


def columns(is_training: bool, clock: str = "CPU") -> list[str]:
    """Returns the heads of the columns."""
    last = "saved, MiB" if is_training else "ready in, s"
    return ["network", "variant", f"{clock} ms", "min..max", "ratio", "of ceiling", "error", last, "peak, MiB"]


def milliseconds(value: float | None) -> str:
    """Returns a time with three figures, or all before the point."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(rows: Sequence[Row], is_training: bool) -> list[str]:
    heads = columns(is_training, "GPU" if rows[0].device == "cuda" else "CPU")
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    lines += [cells(row, is_training=is_training) for row in rows]
    return [f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines]


def _ceilings(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each network with what it needs and what the machine gave meanwhile."""
    lines = []
    measured = [row for row in rows if row.status == MEASURED]
    for name, group in groupby(measured, key=lambda row: row.network):
        members = {row.dtype: row for row in group}
        row = next(iter(members.values()))
        rates = ", ".join(f"{_number(other.conv_gflops, 0)} GFLOP/s {dtype}" for dtype, other in members.items())
        shape = "x".join(map(str, row.shape))
        lines.append(
            f"- {name}: input {shape}, {_number(row.gflop, 1)} GFLOP; convolution {rates}, "
            f"copy {_number(row.copy_gbps, 1)} GB/s; {row.rounds} rounds; "
            f"load average {_number(row.load_before, 2)} before, {_number(row.load_after, 2)} after"
        )
    return ["\n".join(lines)] if lines else []


def _head(device: str, threads: int) -> str:
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}"


def _ready(row: Row) -> str:
    export = "" if row.export_s is None else f" (+{row.export_s:.1f} export)"
    return MISSING if row.ready_s is None else f"{row.ready_s:.2f}{export}"


def _number(value: float | None, decimals: int) -> str:
    return MISSING if value is None else f"{value:.{decimals}f}"

"""What a check found, as text for people, and as JSON for programs."""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

from densekit.datasets.checks.result import CheckResult, Fault
from densekit.files import printable

SPLITS = ("train", "val")
SHOWN = 5  # faults of a kind in the text; JSON has all


def json_lines(result: CheckResult) -> list[str]:
    """Returns one JSON object for each fault, then one with the counts and facts."""
    faults = [
        {
            "kind": fault.kind,
            "severity": fault.severity,
            "path": None if fault.path is None else os.fsencode(fault.path).decode("utf-8", "backslashreplace"),
            "message": fault.message,
            "next_step": fault.next_step,
        }
        for fault in result.faults
    ]
    end = {"errors": len(result.errors), "warnings": len(result.warnings), "kinds": result.kinds, "facts": result.facts}
    return [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in (*faults, end)]


def text_lines(result: CheckResult) -> list[str]:
    """Returns the facts, then the faults grouped by kind with the first few of each, then the counts."""
    lines = fact_lines(result.facts)
    for (severity, kind), group in itertools.groupby(result.faults, lambda fault: (fault.severity, fault.kind)):
        faults = list(group)
        lines += ["", f"{severity} {kind}: {len(faults)}", *(f"  {where(fault)}" for fault in faults[:SHOWN])]
        if len(faults) > SHOWN:
            lines.append(f"  and {len(faults) - SHOWN} more; --json lists all")
        steps = list(dict.fromkeys(fault.next_step for fault in faults[:SHOWN]))
        lines += [f"  next: {step}" for step in steps]
    lines += [""] * bool(result.faults)
    return [*lines, count_text(result)]


def count_text(result: CheckResult) -> str:
    """Returns "2 errors, 1 warning", or "no faults"."""
    found = [(len(result.errors), "error"), (len(result.warnings), "warning")]
    return ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in found) if result.faults else "no faults"


def fact_lines(facts: dict[str, Any]) -> list[str]:
    """Returns the facts as lines: one for each split, then what pairs and classes are."""
    lines = [_split_line(name, facts[name]) for name in SPLITS if name in facts]
    if facts.get("scale"):
        lines.append(f"scale  {facts['scale']}")
    if facts.get("kernels"):
        lines.append("LR made by  " + ", ".join(f"{kernel} {count}" for kernel, count in facts["kernels"].items()))
    if facts.get("near_copies"):
        lines.append(f"near copies  {facts['near_copies']}")
    rows = class_rows(facts)
    if rows:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
        lines += ["  ".join(row).rstrip() for row in cells]
        voids = (f"{facts[name]['void_share']:.2%} of {name}" for name in SPLITS if "void_share" in facts.get(name, {}))
        lines.append(f"void ({facts['ignore_index']})  {', '.join(voids)}; weights are median-frequency, void counted")
    if facts.get("proposed_class_map"):
        lines.append("proposed class map  its numbers as you mean them, below data: in the config")
        lines.append(f"  class_map: {json.dumps(facts['proposed_class_map'])}")
    return lines


def class_rows(facts: dict[str, Any]) -> list[list[str]]:
    """Returns a table of the classes, its heads first; empty where no mask could be read."""
    shown = [name for name in SPLITS if facts.get(name, {}).get("classes")]
    if not shown:
        return []
    rows = [
        ["label", "name", *(f"{name} {what}" for name in shown for what in ("pixels", "share", "images", "weight"))]
    ]
    for records in zip(*(facts[name]["classes"] for name in shown), strict=True):
        row = [str(records[0]["label"]), printable(records[0]["name"]) or "-"]
        for record in records:
            row += [str(record["pixels"]), f"{record['share']:.4f}", str(record["images"])]
            row.append(f"{record['median_frequency_weight']:.4f}")
        rows.append(row)
    return rows


def _split_line(name: str, facts: dict[str, Any]) -> str:
    parts = [f"{facts['pictures']} pictures"]
    if "masks" in facts:
        parts.append(f"{facts['masks']} masks")
    if "smallest" in facts:
        small, large = ("x".join(map(str, facts[key])) for key in ("smallest", "largest"))
        parts.append(small if small == large else f"sides from {small} to {large}")
        parts += [f"{facts[key]} {word}" for key, word in (("grey", "grey"), ("lossy", "JPEG or lossy")) if facts[key]]
    return f"{name}  {', '.join(parts)}"


def where(fault: Fault) -> str:
    """Returns a fault without its next step."""
    return f"{printable(fault.path)}: {fault.message}" if fault.path is not None else fault.message

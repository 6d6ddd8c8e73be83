"""What runs in the processes that measure: `python -m tools.bench.child TASK RESULT`, both JSON files.

A network on a number of threads has one process in which all variants take turns, and one for each variant alone.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from densekit.memory import peak_memory
from tools.bench.clock import Action, conv_action, copy_action, interleave
from tools.bench.forms import TORCH_DTYPES, Absent, Setup, build_source, export_onnx, prepare
from tools.bench.networks import build_network, count_flops, make_input
from tools.bench.process import Task
from tools.bench.training import build_trained, comparable, saved_bytes
from tools.bench.variants import Variant

Result = dict[str, Any]
# Largest difference from the baseline that is rounding, as a share of the largest value.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1}
GRADIENT_TOLERANCES = dict.fromkeys(TOLERANCES, 1e-9)  # gradients are compared in fp64, whatever is timed


def difference(y: Tensor, reference: Tensor) -> float:
    """Returns the largest difference as a share of the largest value of the reference; infinite for another shape."""
    if y.shape != reference.shape:
        return float("inf")
    y, reference = y.double().cpu(), reference.double().cpu()
    return float((y - reference).abs().max() / reference.abs().max())


def export(task: Task) -> Result:
    """Writes the file for the runtimes from the variant's modules."""
    net = build_network(task.case).eval()
    module = build_source(task.variants[0], task.case, net)
    began = time.perf_counter()
    export_onnx(module, make_input(task.case), task.onnx)
    return {"seconds": time.perf_counter() - began}


def alone(task: Task) -> Result:
    """Returns what one variant takes from built modules to its first result: seconds, and bytes of that call.

    Of a training step that is the bytes alone, with those that autograd keeps.
    """
    variant, setup, x = task.variants[0], _setup(task), make_input(task.case).to(task.device)
    net = build_network(task.case).eval()
    if task.is_training:
        trained = build_trained(variant, task.case, net, setup)
        return {"peak": _peak(lambda: trained.step(x), task.device), "saved": saved_bytes(trained, x)}
    module = build_source(variant, task.case, net).eval()
    del net
    with torch.inference_mode():
        began = time.perf_counter()
        run = prepare(variant, module, setup)
        peak = _peak(lambda: run(x), task.device)
        ready = time.perf_counter() - began
    counted = task.device == "cpu" or variant.form != "ONNX Runtime"  # which has an allocator of its own
    return {"ready": ready, "peak": peak if counted else None}


def together(task: Task) -> Result:
    """Returns the samples of all variants that give the baseline's result, and of the ceilings, taken in turn."""
    load = [os.getloadavg()[0]]
    x = make_input(task.case).to(task.device)
    net = build_network(task.case).eval()
    build = _training_actions if task.is_training else _inference_actions
    actions, found = build(task, net, x)
    dtypes = sorted({variant.dtype for variant in task.variants})
    ceilings = {f"conv {dtype}": conv_action(task.device, TORCH_DTYPES[dtype]) for dtype in dtypes}
    ceilings["copy"] = copy_action(task.device)
    for action, _ in ceilings.values():
        action()
    gc.collect()
    with torch.set_grad_enabled(task.is_training):
        every = {**actions, **{f"ceiling {name}": action for name, (action, _) in ceilings.items()}}
        samples = interleave(every, task.rounds, task.device)
    for name in actions:
        found[name]["samples"] = samples[name]
    return {
        "variants": found,
        "ceilings": {
            name: {"work": work, "samples": samples[f"ceiling {name}"]} for name, (_, work) in ceilings.items()
        },
        "flops": count_flops(net, task.case.shape, is_training=task.is_training),
        "load": [*load, os.getloadavg()[0]],
        "device": torch.cuda.get_device_name() if task.device == "cuda" else "",
    }


def _inference_actions(task: Task, net: nn.Module, x: Tensor) -> tuple[dict[str, Action], dict[str, Result]]:
    def start(variant: Variant) -> tuple[Action, Tensor]:
        module = build_source(variant, task.case, net).eval()
        with torch.inference_mode():
            run = prepare(variant, module, _setup(task))

        def action() -> Tensor:
            with torch.inference_mode():
                return run(x)

        return action, action().clone()

    return _compare(task.variants, start, TOLERANCES)


def _training_actions(task: Task, net: nn.Module, x: Tensor) -> tuple[dict[str, Action], dict[str, Result]]:
    small = comparable(task.case)
    compared, picture = build_network(small), make_input(small).to(task.device, torch.float64)

    def start(variant: Variant) -> tuple[Action, Tensor]:
        gradient = build_trained(variant, small, compared, _setup(task), "fp64").gradient(picture)
        trained = build_trained(variant, task.case, net, _setup(task))
        trained.step(x)  # warms up
        return lambda: trained.step(x), gradient

    return _compare(task.variants, start, GRADIENT_TOLERANCES)


def _compare(
    variants: tuple[Variant, ...], start: Callable[[Variant], tuple[Action, Tensor]], tolerances: dict[str, float]
) -> tuple[dict[str, Action], dict[str, Result]]:
    """Starts all variants; returns the actions of those that agree with the first, and what was found of each."""
    actions: dict[str, Action] = {}
    found: dict[str, Result] = {}
    reference: Tensor | None = None
    for variant in variants:
        try:
            action, y = start(variant)
        except Absent as problem:
            found[variant.name] = {"absent": str(problem)}
            continue
        except Exception as problem:  # one peer that fails is one row
            if reference is None:
                raise
            found[variant.name] = {"failed": _first_line(problem)}
            continue
        reference = y if reference is None else reference
        error, allowed = difference(y, reference), tolerances[variant.dtype]
        found[variant.name] = {"error": error}
        if error <= allowed:
            actions[variant.name] = action
        else:
            found[variant.name]["wrong"] = f"differs from {variants[0].name} by {error:.2g}, allowed {allowed:.2g}"
    return actions, found


def _peak(action: Action, device: str) -> int:
    """Returns by how many bytes the memory in use rises at most while an action runs."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_peak()
    before = torch.cuda.memory_allocated() if device == "cuda" else peak_memory(device)
    action()
    return peak_memory(device) - before


def _reset_peak() -> None:
    """Brings the peak resident size of this process down to its present size, where the system can (Linux)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _setup(task: Task) -> Setup:
    return Setup(task.device, task.threads, task.onnx)


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else ''}"


ACTIONS: dict[str, Callable[[Task], Result]] = {"export": export, "alone": alone, "together": together}


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    task = TypeAdapter(Task).validate_json(source.read_text("utf-8"))
    torch.set_num_threads(task.threads)
    if task.device == "cuda":  # fp32 means fp32 in all of them
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        result = ACTIONS[task.action](task)
    except Absent as problem:
        result = {"absent": str(problem)}
    target.write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()

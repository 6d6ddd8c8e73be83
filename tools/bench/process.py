"""The processes that measure, seen from outside: what they are told, and how they are started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from tools.bench.cases import Case
from tools.bench.variants import Variant

ROOT = Path(__file__).parents[2]
# A library whose threads spin while they wait looks two to three times as slow on a busy machine as one whose threads
# sleep. These must be set before the first import of torch.
PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


@dataclass(frozen=True)
class Task:
    """What a process has to do: one of `tools.bench.child.ACTIONS` with a case and its variants."""

    action: Literal["export", "alone", "together"]
    case: Case
    variants: tuple[Variant, ...]
    threads: int
    device: str
    rounds: int
    folder: Path
    is_training: bool = False

    @property
    def onnx(self) -> Path:
        return self.folder / f"{self.case.name}.onnx"


class ChildError(Exception):
    """A process that ended without a result; the message says how."""


def run_child(task: Task) -> dict[str, Any]:
    """Returns what a fresh process found.

    Raises:
        ChildError: it failed or was killed.
    """
    source, target = task.folder / "task.json", task.folder / "result.json"
    source.write_bytes(TypeAdapter(Task).dump_json(task))
    target.unlink(missing_ok=True)
    threads = str(task.threads)
    environment = {**os.environ, **PASSIVE, "OMP_NUM_THREADS": threads, "TORCHINDUCTOR_CACHE_DIR": str(task.folder)}
    command = [sys.executable, "-m", "tools.bench.child", str(source), str(target)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode < 0:
        raise ChildError(f"killed by signal {-done.returncode}{' (out of memory?)' if done.returncode == -9 else ''}")
    if done.returncode or not target.exists():
        lines = done.stderr.strip().splitlines()
        raise ChildError(lines[-1] if lines else f"ended with code {done.returncode}")
    result: dict[str, Any] = json.loads(target.read_text("utf-8"))
    return result

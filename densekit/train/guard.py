"""What happens when numbers stop being finite: the step is skipped, and after too many of them the run stops."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from densekit.config import Config
from densekit.errors import DataError
from densekit.files import atomic_write, printable
from densekit.tasks import Task
from densekit.train.progress import warn
from densekit.train.run import Run


class Guard:
    """Judges each step of a run.

    Args:
        run: its log gets a line for each skipped step, its folder `not_finite.json` when the run is stopped.
        task: knows the files that a draw came from.
        config: `train.max_skipped` in a row are allowed.
        skipped: how many the last steps were, from the state of a resumed run.
        whose: steps they are, in messages.
        remedy: for the one who has to start anew.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        config: Config,
        skipped: int = 0,
        *,
        whose: str = "the",
        remedy: str = "optim.learning_rate or optim.clip_norm",
    ) -> None:
        self.run: Run = run
        self.task: Task = task
        self.config: Config = config
        self.skipped: int = skipped
        self.whose: str = whose
        self.remedy: str = remedy

    def passes(self, step: int, loss: float, norm: Tensor, scaler: torch.amp.GradScaler) -> bool:
        """Says whether the gradients of a step may be used; a step without finite ones is skipped.

        Where losses are scaled, an overflow of the gradient is how the scale is found, and no fault.

        Raises:
            DataError: the one that is too many. Weights and states are those from before the first skipped step.
        """
        if math.isfinite(loss) and bool(norm.isfinite()):
            self.skipped = 0
            return True
        if math.isfinite(loss) and scaler.is_enabled() and scaler.get_scale() > 1:
            return False
        what = f"{self.whose} " + (f"loss is {loss}" if not math.isfinite(loss) else "gradient is not finite")
        self.skipped += 1
        if self.skipped > self.config.train.max_skipped:
            raise self.error(step, what)
        self.run.log({"step": step + 1, "skipped": what})
        if self.run.writes:
            warn(f"step {step}: {what}; skipped ({self.skipped} in a row, {self.config.train.max_skipped} allowed)")
        return False

    def error(self, step: int, what: str) -> DataError:
        """Returns the error that ends a run whose numbers ran away; writes where that was into the run's folder."""
        count = self.config.train.batch_size * self.config.train.accumulate
        first, last = step * count, (step + 1) * count - 1
        paths = self.task.sources(range(first, last + 1))
        record = {"step": step, "what": what, "draws": [first, last], "files": [printable(path) for path in paths]}
        if self.run.writes:
            atomic_write(self.run.folder / "not_finite.json", (json.dumps(record, indent=1) + "\n").encode())
        return DataError(
            f"step {step}, draws {first} to {last}: {what}; of {shown(paths)}; the last whole state stays in "
            f"{printable(self.run.states)}; start another --run with a lower {self.remedy}"
        )


def shown(paths: Sequence[Path]) -> str:
    """Returns the first three of some files for a message; `not_finite.json` has all."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(printable(path) for path in paths[:3]) + more

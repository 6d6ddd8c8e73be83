"""The order in which the processes of a run are started, and the rows that come of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tools.bench.cases import Case
from tools.bench.process import ChildError, Task, run_child
from tools.bench.rows import ABSENT, FAILED, Row, empty_row, make_row
from tools.bench.variants import RUNTIMES, Variant, absent, absent_peers, inference_variants, select, training_variants

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What is asked for on the command line."""

    is_training: bool = False
    threads: tuple[int, ...] = (1,)
    rounds: int = 7
    device: str = "cpu"
    dtype: str = "fp32"
    with_compile: bool = False
    variants: tuple[str, ...] = ()
    times_only: bool = False


def measure_all(cases: Sequence[Case], options: Options, say: Say) -> Iterator[Row]:
    """Yields the rows of all networks, first on the first number of threads; `say` is told what is under way."""
    with tempfile.TemporaryDirectory() as scratch:
        exports: dict[str, float | str] = {}
        for threads in options.threads:
            for case in cases:
                yield from _Measuring(case, options, threads, Path(scratch), exports, say).rows()


class _Measuring:
    """One network on one number of threads.

    Args:
        case, options, threads: what is measured.
        folder: of the files that processes share; the compiler's cache is there, so that each run starts cold.
        exports: network -> seconds that its exported file took, or why there is none.
        say: is told what is under way.
    """

    def __init__(
        self, case: Case, options: Options, threads: int, folder: Path, exports: dict[str, float | str], say: Say
    ) -> None:
        self.case, self.options, self.threads, self.exports = case, options, threads, exports
        self.say = say
        make = training_variants if options.is_training else inference_variants
        every = make(case, options.dtype, with_compile=options.with_compile)
        self.variants = select(every, list(options.variants))
        self.task = Task(
            "alone", case, (), threads, options.device, options.rounds, folder, is_training=options.is_training
        )

    def rows(self) -> Iterator[Row]:
        left_out: dict[str, Row] = {}
        alone: dict[str, dict[str, Any]] = {}
        for variant in self.variants:
            try:
                why = absent(variant, self.options.device)
                if not why:
                    alone[variant.name] = self._alone(variant)
                    why = alone[variant.name].get("absent", "")
                if why:
                    left_out[variant.name] = self._empty(variant, ABSENT, why)
            except ChildError as problem:
                left_out[variant.name] = self._empty(variant, FAILED, str(problem))
            if self.variants[0].name in left_out:
                break  # nothing to compare with
        together = self._together([variant for variant in self.variants if variant.name not in left_out])
        for variant in self.variants:
            if variant.name in left_out:
                yield left_out[variant.name]
            elif isinstance(together, str):
                yield self._empty(variant, FAILED, together)
            else:
                yield make_row(
                    self.case,
                    variant,
                    self.options.device,
                    self.threads,
                    alone=alone[variant.name],
                    together=together,
                    baseline=self.variants[0].name,
                )
        for name, why in absent_peers(self.case).items():
            yield self._empty(replace(self.variants[0], name=name), ABSENT, why)

    def _alone(self, variant: Variant) -> dict[str, Any]:
        """Returns what a variant takes in a process of its own, and what its exported file took."""
        result: dict[str, Any] = {"export": self._export(variant)} if variant.form in RUNTIMES else {}
        if self.options.times_only:
            return result
        self._say(f"{variant.name} alone")
        return result | run_child(replace(self.task, variants=(variant,)))

    def _export(self, variant: Variant) -> float:
        """Returns how long the file for the runtimes took; it is written once for all of them."""
        if self.case.name not in self.exports:
            self._say("export")
            try:
                done = run_child(replace(self.task, action="export", variants=(variant,)))
                self.exports[self.case.name] = done["seconds"]
            except ChildError as problem:
                self.exports[self.case.name] = f"export: {problem}"
        found = self.exports[self.case.name]
        if isinstance(found, str):
            raise ChildError(found)
        return found

    def _together(self, variants: Sequence[Variant]) -> dict[str, Any] | str:
        """Returns the result of the process in which the variants take turns, or why there is none."""
        if self.variants[0] not in variants:
            return f"not run: {self.variants[0].name} failed"
        self._say(f"{len(variants)} variants in turn, {self.options.rounds} rounds")
        try:
            return run_child(replace(self.task, action="together", variants=tuple(variants)))
        except ChildError as problem:
            return str(problem)

    def _empty(self, variant: Variant, status: str, note: str) -> Row:
        return empty_row(self.case, variant, self.options.device, self.threads, status, note)

    def _say(self, text: str) -> None:
        self.say(f"{self.case.name}, {self.threads} thread{'s' if self.threads > 1 else ''}: {text}")

"""Measures networks beside their peers and prints a Markdown table. `python -m tools.bench [inference|training]`

Each network has one process, in which all variants take turns on the same input with the same weights, and each
variant one for itself, for its memory and the time until it is ready. A variant whose result differs from the
baseline's is not timed and makes the exit code 1; what is not installed is named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from densekit.errors import DensekitError
from densekit.predict.device import choose_device
from tools.bench.cases import INFERENCE, TRAINING, choose_cases, read_cases
from tools.bench.chart import to_svg
from tools.bench.machine import describe_machine
from tools.bench.rows import Row, is_fault
from tools.bench.runner import Options, measure_all
from tools.bench.table import to_markdown
from tools.bench.variants import DTYPES


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("inference", "training"), default="inference")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="those measured; all by default")
    parser.add_argument("--cases", type=Path, metavar="FILE", help="JSON list of other networks, fields as in cases.py")
    parser.add_argument(
        "--variants", nargs="+", default=(), metavar="PATTERN", help="such as 'densekit*'; and the first"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--times-only", action="store_true", help="no processes for memory and the time until ready")
    parser.add_argument("--threads", nargs="+", type=positive, default=[1], metavar="N")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of all but the baseline, which is fp32")
    parser.add_argument("--batch", type=positive, metavar="N", help="pictures at once")
    parser.add_argument("--crop", type=positive, metavar="PIXELS", help="a square input of this side")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="table.md, results.json, chart.svg")
    return parser


def positive(text: str) -> int:
    """Returns a number of the command line that is above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def write_results(folder: Path, rows: Sequence[Row], table: str, title: str, machine: str) -> None:
    """Writes the table, the rows with every figure, and the chart."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table, "utf-8")
    records = [{**asdict(row), "machine": machine} for row in rows]
    (folder / "results.json").write_text(json.dumps(records, indent=1, allow_nan=False) + "\n", "utf-8")
    (folder / "chart.svg").write_text(to_svg(rows, title), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    given = make_parser().parse_args(arguments)
    is_training = given.what == "training"
    try:
        known = read_cases(given.cases) if given.cases else TRAINING if is_training else INFERENCE
        cases = choose_cases(known, given.networks, given.batch, given.crop)
        choose_device(given.device)
    except DensekitError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    options = Options(
        is_training,
        tuple(given.threads),
        given.rounds,
        given.device,
        given.dtype,
        given.compile,
        tuple(given.variants),
        given.times_only,
    )
    machine = describe_machine()
    rows: list[Row] = []
    is_interrupted = False
    try:
        rows.extend(measure_all(cases, options, lambda text: print(text, file=sys.stderr, flush=True)))
    except KeyboardInterrupt:
        is_interrupted = True
    title = f"{given.what}, {given.device}, {given.dtype}"
    table = to_markdown(rows, machine, title, is_training=is_training)
    print(table, end="")
    if given.output:
        write_results(given.output, rows, table, title, machine)
    return 130 if is_interrupted else 1 if any(map(is_fault, rows)) else 0


if __name__ == "__main__":
    sys.exit(main())

"""How memory and time of a training step grow with depth, growth rate, image size and batch, as tables and plots.

python -m tools.bench_scaling -o FOLDER [--rounds 3] [--only depth ...]: DenseNets of torchvision, with and without its
`memory_efficient=True`, and ours under every policy. Bytes that autograd keeps are counted at 8 pictures of 224x224
without computing; CPU seconds of a step on one thread are measured at 4 of 128x128, in turn, the least of the rounds.
Writes scaling.md and an SVG for each table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchvision.models import DenseNet

from densekit import create_model
from densekit.blocks import MEMORY_POLICIES, saved_bytes
from densekit.report.markup import tag
from densekit.report.svg import ticks

Case = dict[str, int]
BLOCKS = {
    40: (3, 5, 6, 4),
    80: (4, 8, 16, 10),
    121: (6, 12, 24, 16),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
    264: (6, 12, 64, 48),
}
COUNTED: Case = {"depth": 121, "growth rate": 32, "size": 224, "batch": 8}
TIMED: Case = {**COUNTED, "size": 128, "batch": 4}
AXES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # values to count and to time at
    "depth": (tuple(BLOCKS), tuple(BLOCKS)),
    "growth rate": ((12, 16, 24, 32, 48), (12, 16, 24, 32, 48)),
    "size": ((64, 128, 224, 320, 448), (64, 128, 160, 224)),
    "batch": ((1, 4, 8, 16, 32), (1, 2, 4, 8)),
}
COLOURS = ("#888888", "#c0504d", "#222222", "#2e75b6", "#2e9e6b", "#8064a2")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 70, 170, 16, 48


def builders(case: Case) -> dict[str, Callable[[], nn.Module]]:
    """Returns what builds each rival's network of a case."""
    blocks, growth = BLOCKS[case["depth"]], case["growth rate"]

    def theirs(*, memory_efficient: bool) -> nn.Module:
        return DenseNet(growth, blocks, 2 * growth, memory_efficient=memory_efficient)

    def ours(policy: str) -> nn.Module:
        return create_model("densenet", growth_rate=growth, block_config=blocks, memory=policy)

    return {
        "torchvision": lambda: theirs(memory_efficient=False),
        "memory_efficient": lambda: theirs(memory_efficient=True),
        **{policy: lambda policy=policy: ours(policy) for policy in MEMORY_POLICIES},
    }


def count(case: Case) -> dict[str, float]:
    """Returns the mebibytes that each rival keeps."""
    found = {}
    for name, build in builders(case).items():
        with torch.device("meta"):
            x = torch.empty(case["batch"], 3, case["size"], case["size"])
            found[name] = saved_bytes(build().train(), x) / 2**20
    return found


def measure(case: Case, rounds: int) -> dict[str, float]:
    """Returns the CPU seconds of a step of each rival."""
    x = torch.randn(case["batch"], 3, case["size"], case["size"])
    nets = {name: build().train() for name, build in builders(case).items()}
    times: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(rounds):
        for name, net in nets.items():
            net.zero_grad()
            began = time.process_time()
            net(x).square().mean().backward()
            times[name].append(time.process_time() - began)
    return {name: min(values) for name, values in times.items()}


def table(axis: str, values: tuple[int, ...], found: list[dict[str, float]], digits: int) -> str:
    """Returns a Markdown table with a row for each value of an axis."""
    rows = [
        f"| {value} | {' | '.join(f'{cell:.{digits}f}' for cell in row.values())} |"
        for value, row in zip(values, found, strict=True)
    ]
    return "\n".join([f"| {axis} | {' | '.join(found[0])} |", f"|{'---|' * (len(found[0]) + 1)}", *rows])


def plot(axis: str, label: str, values: tuple[int, ...], found: list[dict[str, float]]) -> str:
    """Returns an SVG of its own with a curve for each rival."""
    x_ticks = ticks(0, max(values))
    y_ticks = ticks(0, max(max(row.values()) for row in found))

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / x_ticks[-1], y / y_ticks[-1]
        return LEFT + (WIDTH - LEFT - RIGHT) * across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up

    parts = []
    for value in y_ticks:
        (x, y), (end, _) = place(0, value), place(x_ticks[-1], value)
        parts.append(tag("line", x1=x, x2=end, y1=y, y2=y, stroke="#dddddd"))
        parts.append(tag("text", f"{value:g}", x=x - 8, y=y, dy="0.32em", text_anchor="end"))
    for value in x_ticks:
        x, y = place(value, 0)
        parts.append(tag("text", f"{value:g}", x=x, y=y + 18, text_anchor="middle"))
    parts.append(tag("text", f"{label} by {axis}", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 8, text_anchor="middle"))
    for number, name in enumerate(found[0]):
        points = [place(value, row[name]) for value, row in zip(values, found, strict=True)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(tag("polyline", points=line, fill="none", stroke=COLOURS[number], stroke_width=2))
        parts.append(tag("text", name, x=WIDTH - RIGHT + 14, y=TOP + 18 * (number + 1), fill=COLOURS[number]))
    style = {"font_family": "sans-serif", "font_size": 12}
    box = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}"}
    return str(tag("svg", tag("rect", width=WIDTH, height=HEIGHT, fill="#ffffff"), *parts, **box, **style))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder, made if missing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=AXES, default=list(AXES), help="axes; all if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = ["# DenseNet training steps as they grow\n"]
    for axis in arguments.only:
        to_count, to_time = AXES[axis]
        kept = [count({**COUNTED, axis: value}) for value in to_count]
        text += [f"## MiB kept, by {axis}\n", table(axis, to_count, kept, 1) + "\n"]
        (arguments.out / f"memory_{axis.replace(' ', '_')}.svg").write_text(plot(axis, "MiB kept", to_count, kept))
        seconds = [measure({**TIMED, axis: value}, arguments.rounds) for value in to_time]
        text += [f"## CPU seconds of a step, by {axis}\n", table(axis, to_time, seconds, 3) + "\n"]
        (arguments.out / f"time_{axis.replace(' ', '_')}.svg").write_text(plot(axis, "CPU seconds", to_time, seconds))
    fixed = "; ".join(
        f"{what} at {', '.join(f'{key} {value}' for key, value in case.items())}"
        for what, case in (("counted", COUNTED), ("timed", TIMED))
    )
    text.append(f"One thread, float32, torch {torch.__version__}; where not said otherwise {fixed}.\n")
    (arguments.out / "scaling.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()

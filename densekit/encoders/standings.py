"""A comparison of encoders as a picture: what each scores against what it costs, as the articles draw it."""

from __future__ import annotations

import math
from collections.abc import Callable

from densekit.encoders.charts import CURVES, FAINT, document, rounded
from densekit.encoders.comparison import Comparison, Standing
from densekit.encoders.opening import PEER
from densekit.report.markup import Html, tag
from densekit.report.svg import ticks

COSTS: list[tuple[str, Callable[[Standing], float]]] = [
    ("parameters, millions", lambda standing: standing.parameters / 1e6),
    ("MACs of a crop, billions", lambda standing: standing.macs / 1e9),
    ("activations kept in a step, MiB (hollow: policy min)", lambda standing: standing.kept_bytes / 2**20),
    ("time of a step, first encoder = 1", lambda standing: standing.step_ratio),
]
KEPT = 2  # the panel of which policies change the cost
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 2, 400, 290
LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 62, 20, 318, 210
RADIUS = 8
LINE, GAP = 20, 12  # height of a line of the legend, and above its first


def comparison_picture(result: Comparison, title: str) -> str:
    """Returns the score of each encoder against its parameters, multiplications, memory and time, as an SVG file.

    Circles are encoders of ours, squares those of timm; the numbers in them are explained below.
    """
    panels = []
    for index, (label, cost) in enumerate(COSTS):
        x, y = index % COLUMNS * PANEL_WIDTH, 40 + index // COLUMNS * PANEL_HEIGHT
        panel = _panel(result, label, cost, has_least=index == KEPT)
        panels.append(tag("g", panel, transform=f"translate({x} {y})"))
    top = 40 + -(-len(COSTS) // COLUMNS) * PANEL_HEIGHT + GAP
    legend = []
    for place, standing in enumerate(result.standings):
        y = top + LINE * place
        score = f"{standing.name}: {standing.score:.3f}"
        legend.append(_mark(standing, place, LEFT, y))
        legend.append(tag("text", score, x=LEFT + 2 * RADIUS, y=y, dy="0.35em"))
    return document(title, [*panels, *legend], COLUMNS * PANEL_WIDTH, top + LINE * len(result.standings) + RADIUS)


def _panel(result: Comparison, label: str, cost: Callable[[Standing], float], *, has_least: bool) -> Html:
    scores = [standing.score for standing in result.standings if math.isfinite(standing.score)] or [0.0, 1.0]
    across, up = ticks(0, max(map(cost, result.standings))), ticks(min(scores), max(scores))
    low, right = TOP + PLOT_HEIGHT, LEFT + PLOT_WIDTH

    def x_of(value: float) -> float:
        return LEFT + PLOT_WIDTH * value / across[-1]

    def y_of(value: float) -> float:
        return low - PLOT_HEIGHT * (value - up[0]) / (up[-1] - up[0])

    parts: list[Html] = []
    for tick in up:
        height = rounded(y_of(tick))
        parts.append(tag("line", x1=LEFT, x2=right, y1=height, y2=height, stroke=FAINT))
        parts.append(tag("text", f"{tick:g}", x=LEFT - 12, y=height, dy="0.32em", text_anchor="end"))
    for tick in across:
        below = rounded(x_of(tick))
        parts.append(tag("text", f"{tick:g}", x=below, y=low + 24, text_anchor="middle"))
    parts.append(tag("text", label, x=(LEFT + right) // 2, y=low + 44, text_anchor="middle"))
    middle, metric = TOP + PLOT_HEIGHT // 2, "IoU" if result.metric == "iou" else "mIoU"
    parts.append(tag("text", metric, x=14, y=middle, text_anchor="middle", transform=f"rotate(-90 14 {middle})"))
    for place, standing in enumerate(result.standings):
        if not math.isfinite(standing.score):  # the classes of the pictures scored were neither there nor found
            continue
        x, y = x_of(cost(standing)), y_of(standing.score)
        if has_least and standing.least_bytes < standing.kept_bytes:
            least = x_of(standing.least_bytes / 2**20)
            color = _color(standing)
            parts.append(tag("line", x1=rounded(least), x2=rounded(x), y1=rounded(y), y2=rounded(y), stroke=color))
            parts.append(tag("circle", cx=rounded(least), cy=rounded(y), r=5, fill="#ffffff", stroke=color))
        parts.append(_mark(standing, place, x, y))
    return tag("g", *parts)


def _mark(standing: Standing, place: int, x: float, y: float) -> Html:
    """Returns a circle for an encoder of ours, a square for one of timm's, with its number inside."""
    hint, fill = tag("title", f"{standing.name}: {standing.score:.4g}"), _color(standing)
    if standing.name.startswith(PEER):
        size = {"width": 2 * RADIUS, "height": 2 * RADIUS}
        shape = tag("rect", hint, x=rounded(x - RADIUS), y=rounded(y - RADIUS), **size, fill=fill)
    else:
        shape = tag("circle", hint, cx=rounded(x), cy=rounded(y), r=RADIUS, fill=fill)
    number = tag(
        "text", place + 1, x=rounded(x), y=rounded(y), dy="0.35em", text_anchor="middle", fill="#ffffff", font_size=11
    )
    return tag("g", shape, number)


def _color(standing: Standing) -> str:
    return CURVES[standing.name.startswith(PEER)]

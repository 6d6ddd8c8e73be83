"""Pictures of analyses as SVG files that stand alone: dark text on white, whatever shows them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from densekit.encoders.gradients import LayerGradient
from densekit.encoders.reuse import Reuse
from densekit.report.markup import Html, tag
from densekit.report.svg import log_ticks, rgb, ticks

INK, FAINT = "#1a1a1a", "#d0d0d0"
RAMP = ((250, 250, 240), (148, 200, 200), (40, 110, 160), (12, 24, 72))  # light to dark also where colours are not told
CURVES, DASHES = ("#0b5fa5", "#b8470a", "#4b7a1e"), (None, "7 4", "2 3")
MAX_WIDTH = 1240  # of a picture, as long as no single block is wider
PANEL_LEFT, PANEL_TOP, PANEL_GAP = 46, 34, 26  # room for the numbers, the name, and the next panel
WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 46, 50


def reuse_picture(blocks: Sequence[Reuse], title: str) -> str:
    """Returns the heat maps of dense blocks side by side: columns read, rows are read.

    A cell's colour is its weight by the largest of its column. The column of what reads the whole block has a frame.
    """
    panels: list[Html] = []
    x = y = line = right = 0.0
    for block in blocks:
        panel, width, height = _panel(block)
        if x and x + width > MAX_WIDTH:
            x, y, line = 0.0, y + line, 0.0
        panels.append(tag("g", panel, transform=f"translate({rounded(x)} {rounded(y + 40)})"))
        x, line, right = x + width, max(line, height), max(right, x + width)
    width, bottom = max(right, 420.0) + PANEL_GAP, y + line + 40
    legend = _legend(bottom)
    return document(title, [*panels, legend], width, bottom + 64)


def gradient_picture(curves: Sequence[tuple[str, Sequence[LayerGradient]]], title: str) -> str:
    """Returns the gradient norms of one to three networks over their depth, each by the median of its own.

    Args:
        curves: (name, norms in the order of the layers), none of them empty.
        title: above the picture.
    """
    runs: list[list[tuple[float, float]]] = []
    for _, norms in curves:
        found = [(place, layer.norm) for place, layer in enumerate(norms) if layer.norm > 0]
        middle = statistics.median(norm for _, norm in found) if found else 1.0
        runs.append([(place / max(1, len(norms) - 1), norm / middle) for place, norm in found])
    heights = [math.log10(value) for run in runs for _, value in run] or [0.0]
    scale = log_ticks(min(heights), max(heights))
    low, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def place_of(share: float, value: float) -> tuple[float, float]:
        up = (math.log10(value) - scale[0]) / (scale[-1] - scale[0])
        return LEFT + (right - LEFT) * share, low - (low - TOP) * up

    parts: list[Html] = []
    for tick in scale:
        height = rounded(place_of(0, 10**tick)[1])
        parts.append(tag("line", x1=LEFT, x2=right, y1=height, y2=height, stroke=FAINT))
        parts.append(tag("text", f"{10**tick:g}", x=LEFT - 8, y=height, dy="0.32em", text_anchor="end"))
    for tick in ticks(0, 1):
        across = rounded(LEFT + (right - LEFT) * tick)
        parts.append(tag("text", f"{tick:g}", x=across, y=low + 18, text_anchor="middle"))
    label = "depth: 0 is the first layer that runs, 1 the last"
    parts.append(tag("text", label, x=(LEFT + right) // 2, y=HEIGHT - 10, text_anchor="middle"))
    middle_y = (TOP + low) // 2
    turn = f"rotate(-90 16 {middle_y})"
    parts.append(tag("text", "gradient norm / median", x=16, y=middle_y, text_anchor="middle", transform=turn))
    for number, ((name, norms), run) in enumerate(zip(curves, runs, strict=True)):
        line = {"stroke": CURVES[number], "stroke_width": 2, "stroke_dasharray": DASHES[number]}
        points = [place_of(*point) for point in run]
        parts.append(tag("polyline", points=" ".join(map(_pair, points)), fill="none", **line))
        for (x, y), layer in zip(points, [layer for layer in norms if layer.norm > 0], strict=True):
            hint = tag("title", f"{name} {layer.name}: {layer.norm:.4g}")
            parts.append(tag("circle", hint, cx=rounded(x), cy=rounded(y), r=2.5, fill=CURVES[number]))
        left = LEFT + 12 + number * 230
        parts.append(tag("line", x1=left, x2=left + 26, y1=TOP - 8, y2=TOP - 8, **line))
        parts.append(tag("text", f"{name} ({len(norms)} layers)", x=left + 32, y=TOP - 4))
    return document(title, parts, WIDTH, HEIGHT)


def shade(share: float) -> str:
    """Returns the colour of a share in 0..1."""
    place = min(1.0, max(0.0, share)) * (len(RAMP) - 1)
    index = min(int(place), len(RAMP) - 2)
    between = place - index
    low, high = RAMP[index], RAMP[index + 1]
    return rgb(tuple(round(a + (b - a) * between) for a, b in zip(low, high, strict=True)))  # type: ignore[arg-type]


def _panel(block: Reuse) -> tuple[Html, float, float]:
    """Returns a block's heat map, and the width and height that it takes."""
    columns = len(block.targets)
    rows = min(
        columns, len(block.sources)
    )  # nothing reads the last layer where the columns have no reader of the block
    cell = max(6, min(18, 360 // max(rows, columns)))
    parts = [tag("text", block.name, x=PANEL_LEFT, y=14, font_weight="bold")]
    for column, target in enumerate(block.targets):
        values = [block.weights[row][column] for row in range(rows)]
        largest = max(value for value in values if not math.isnan(value)) or 1.0
        for row, value in enumerate(values):
            if math.isnan(value):
                continue
            hint = tag("title", f"{block.sources[row]} to {target}: {value:.4g}")
            x, y = PANEL_LEFT + column * cell, PANEL_TOP + row * cell
            parts.append(tag("rect", hint, x=x, y=y, width=cell, height=cell, fill=shade(value / largest)))
    for column in _some(columns):
        middle = rounded(PANEL_LEFT + (column + 0.5) * cell)
        parts.append(tag("text", column + 1, x=middle, y=PANEL_TOP - 5, text_anchor="middle", font_size=10))
    for row in _some(rows):
        middle = rounded(PANEL_TOP + (row + 0.5) * cell)
        parts.append(tag("text", row, x=PANEL_LEFT - 6, y=middle, dy="0.32em", text_anchor="end", font_size=10))
    if columns == len(block.sources):  # the last column is no layer of the block
        x = PANEL_LEFT + (columns - 1) * cell
        size = {"width": cell, "height": rows * cell}
        parts.append(tag("rect", x=x, y=PANEL_TOP, **size, fill="none", stroke=INK, stroke_width=1.5))
    width = max(PANEL_LEFT + columns * cell, PANEL_LEFT + 7.0 * len(block.name)) + PANEL_GAP
    return tag("g", *parts), width, PANEL_TOP + rows * cell + PANEL_GAP


def _legend(y: float) -> Html:
    steps = 40
    size = {"width": 4.2, "height": 12}
    bar = [
        tag("rect", x=PANEL_LEFT + 4 * step, y=rounded(y), **size, fill=shade(step / (steps - 1)))
        for step in range(steps)
    ]
    end = PANEL_LEFT + 4 * steps
    return tag(
        "g",
        *bar,
        tag("text", "0", x=PANEL_LEFT - 6, y=rounded(y + 10), text_anchor="end"),
        tag("text", "1  mean absolute weight by the largest of the column", x=end + 8, y=rounded(y + 10)),
        tag("text", "columns: layers that read, framed: what reads the whole block", x=PANEL_LEFT, y=rounded(y + 32)),
        tag("text", "rows: what is read, 0 is the block's input", x=PANEL_LEFT, y=rounded(y + 50)),
    )


def _some(count: int) -> range:
    """Returns the rows or columns that get a number, so that these do not touch."""
    return range(0, count, 1 if count <= 12 else 5 if count <= 40 else 10)


def document(title: str, parts: Sequence[Html], width: float, height: float) -> str:
    """Returns an SVG file of these parts under a title."""
    head = tag("text", title, x=PANEL_LEFT, y=22, font_size=15, font_weight="bold")
    body = tag(
        "svg",
        tag("title", title),
        tag("rect", width="100%", height="100%", fill="#ffffff"),
        tag("g", head, *parts, fill=INK, font_family="system-ui, sans-serif", font_size=12),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {rounded(width)} {rounded(height)}",
        width=rounded(width),
        height=rounded(height),
        role="img",
    )
    return body + "\n"


def rounded(value: float) -> str:
    """Returns a number as SVG takes it, to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _pair(point: tuple[float, float]) -> str:
    return f"{rounded(point[0])},{rounded(point[1])}"

"""Charts as inline SVG: colours and fonts come from the page's style sheet, so that they follow dark and light."""

from __future__ import annotations

import math
from collections.abc import Sequence

from densekit.report.markup import Html, tag
from densekit.report.wording import show

Point = tuple[float, float]
WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44  # margins that the numbers on the axes need
MAX_POINTS = 400  # a screen shows no more; the JSON report has them all


def line_chart(
    points: Sequence[Point],
    title: str,
    x_label: str,
    y_label: str,
    *,
    is_share: bool = False,
    is_log: bool = False,
    behind: Sequence[Point] = (),
) -> Html:
    """Returns a curve with axes; a point that is not finite interrupts it.

    Args:
        points: (x, y), in the order to connect them.
        title: what a screen reader says.
        x_label: below the axis.
        y_label: beside the axis; empty where a caption says it.
        is_share: both axes run from 0 to 1, with the diagonal for comparison.
        is_log: the second axis is logarithmic; what is not above 0 interrupts the curve.
        behind: a fainter curve, such as single values behind their means.
    """
    points, behind = ([_logarithm(p) for p in _thin(curve)] if is_log else _thin(curve) for curve in (points, behind))
    finite = [point for point in points if all(map(math.isfinite, point))]
    every = finite + [point for point in behind if all(map(math.isfinite, point))]
    if not every:
        return tag("p", "no finite points", class_="note")
    xs, ys = ([0.0, 1.0] if is_share else [point[axis] for point in every] for axis in (0, 1))
    x_ticks, y_ticks = ticks(min(xs), max(xs)), (log_ticks if is_log else ticks)(min(ys), max(ys))

    def place(point: Point) -> Point:
        x = LEFT + (WIDTH - LEFT - RIGHT) * _share(point[0], x_ticks)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(point[1], y_ticks)

    low, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in y_ticks:
        y = _number(place((x_ticks[0], value))[1])
        parts.append(tag("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
        shown = _short(10**value if is_log else value)
        parts.append(tag("text", shown, x=LEFT - 8, y=y, dy="0.32em", text_anchor="end"))
    for value in x_ticks:
        x = _number(place((value, y_ticks[0]))[0])
        parts.append(tag("line", x1=x, x2=x, y1=low, y2=low + 4, class_="axis"))
        parts.append(tag("text", _short(value), x=x, y=low + 17, text_anchor="middle"))
    parts.append(tag("line", x1=LEFT, x2=right, y1=low, y2=low, class_="axis"))
    parts.append(tag("text", x_label, x=(LEFT + right) // 2, y=HEIGHT - 6, text_anchor="middle", class_="label"))
    if y_label:
        middle = (TOP + low) // 2
        turn = f"rotate(-90 14 {middle})"
        parts.append(tag("text", y_label, x=14, y=middle, text_anchor="middle", transform=turn, class_="label"))
    if is_share:
        (x1, y1), (x2, y2) = place((0, 0)), place((1, 1))
        ends = {"x1": _number(x1), "y1": _number(y1), "x2": _number(x2), "y2": _number(y2)}
        parts.append(tag("line", **ends, class_="ideal"))
    for curve, kind in ((behind, "curve faint"), (points, "curve")):
        parts += [tag("polyline", points=" ".join(map(_pair, map(place, run))), class_=kind) for run in _runs(curve)]
    if len(finite) <= 30:
        for point in finite:
            center = place(point)
            y_value = 10 ** point[1] if is_log else point[1]
            hint = tag("title", f"{x_label} {_short(point[0])}, {y_label} {_short(y_value)}".replace(",  ", ": "))
            parts.append(tag("circle", hint, cx=_number(center[0]), cy=_number(center[1]), r=3.5, class_="dot"))
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title, class_="chart")


def strip(values: Sequence[tuple[str, float]], key: str, mean: float | None, title: str) -> Html:
    """Returns one dot a picture on the axis of a figure, and a mark at the headline.

    Args:
        values: (name, finite figure) of each picture.
        key: of the figure.
        mean: the headline; not marked if it is not finite.
        title: what a screen reader says.
    """
    numbers = [value for _, value in values]
    has_mean = mean is not None and math.isfinite(mean)
    scale = ticks(min([*numbers, mean] if has_mean and mean is not None else numbers), max(numbers))
    width, middle, margin = 640, 26, 24

    def place(value: float) -> float:
        return margin + (width - 2 * margin) * min(1, max(0, _share(value, scale)))

    parts = [tag("line", x1=margin, x2=width - margin, y1=middle, y2=middle, class_="axis")]
    for value in scale:
        x = _number(place(value))
        parts.append(tag("line", x1=x, x2=x, y1=middle, y2=middle + 5, class_="axis"))
        parts.append(tag("text", _short(value), x=x, y=middle + 20, text_anchor="middle"))
    for name, value in values:
        hint = tag("title", f"{name}: {show(key, value)}")
        parts.append(tag("circle", hint, cx=_number(place(value)), cy=middle, r=6, class_="dot soft"))
    if has_mean and mean is not None:
        x = _number(place(mean))
        parts.append(tag("line", x1=x, x2=x, y1=middle - 16, y2=middle + 10, class_="mean"))
    return tag("svg", *parts, viewBox=f"0 0 {width} 52", role="img", aria_label=title, class_="strip")


def bar(share: float, colour: str | None = None) -> Html:
    """Returns a bar filled by `share` (0..1); what it says stands beside it as a number."""
    length = _number(100 * min(1, max(0, share)))
    size = {"height": 8, "rx": 2}
    filled = tag("rect", width=length, fill=colour, class_="edge" if colour else "fill", **size)
    rail = tag("rect", width=100, class_="rail", **size)
    return tag("svg", rail, filled, viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true", class_="bar")


def swatch(colour: tuple[int, int, int]) -> Html:
    """Returns a small square of a class's colour."""
    square = tag("rect", x=0.5, y=0.5, width=11, height=11, rx=2, fill=rgb(colour), class_="edge")
    return tag("svg", square, viewBox="0 0 12 12", aria_hidden="true", class_="swatch")


def rgb(colour: tuple[int, int, int]) -> str:
    """Returns a colour as SVG writes it."""
    return "#" + "".join(f"{min(255, max(0, int(value))):02x}" for value in colour)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers, evenly spaced, from at or below `low` to at or above `high`; at least two of them."""
    if low == high:
        low, high = (low - abs(low) / 10, high + abs(high) / 10) if low else (-1.0, 1.0)
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns the logarithms of round numbers, from at or below `low` to at or above `high`, which are logarithms too.

    They are 1, 2 and 5 of each decade, and over many decades only every, or every second or further, power of ten.
    """
    if high - low < 1e-6:
        low, high = low - 0.1, high + 0.1
    first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    step = max(1, math.ceil((last - first) / 6))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    values = [power + math.log10(factor) for power in range(first, last + step, step) for factor in factors]
    below = max(value for value in values if value <= low + 1e-9)
    above = min(value for value in values if value >= high - 1e-9)
    return [value for value in values if below <= value <= above]


def _logarithm(point: Point) -> Point:
    return point[0], math.log10(point[1]) if 0 < point[1] < math.inf else math.nan


def _share(value: float, scale: Sequence[float]) -> float:
    return (value - scale[0]) / (scale[-1] - scale[0])


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    """Returns at most about MAX_POINTS points, the lowest and the highest of each stretch, in order."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(2 * len(points) / MAX_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = range(start, min(start + size, len(points)))
        known = [index for index in part if math.isfinite(points[index][1])] or [start]
        ends = {min(known, key=lambda index: points[index][1]), max(known, key=lambda index: points[index][1])}
        kept += [points[index] for index in sorted(ends)]
    return kept


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    runs: list[list[Point]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _pair(point: Point) -> str:
    return f"{_number(point[0])},{_number(point[1])}"


def _short(value: float) -> str:
    if 1e4 <= abs(value) < 1e9:
        return f"{value / 1e6:.3g}M" if abs(value) >= 1e6 else f"{value / 1e3:.3g}k"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3g}"

"""Rows as a bar chart in a file of its own, which follows dark and light wherever it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from densekit.report.markup import Html, tag
from densekit.report.svg import ticks
from tools.bench.rows import MEASURED, Row

WIDTH, LEFT, RIGHT, TOP = 760, 210, 90, 44
BAR, GAP = 16, 22  # height of a bar, and from one to the next
STYLE = """
  :root { color-scheme: light dark; --paper: #fcfcfa; --ink: #1c1e21; --soft: #5a6068; --rule: #dfe1e4;
    --ours: #0a5f9e; --others: #b4bac1; }
  @media (prefers-color-scheme: dark) {
    :root { --paper: #131519; --ink: #e9eaec; --soft: #a3a9b1; --rule: #32363d; --ours: #6cb8f0; --others: #59606a; }
  }
  text { fill: var(--soft); font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
  .paper { fill: var(--paper); } .label { fill: var(--ink); font-weight: 600; }
  .ours { fill: var(--ours); } .others { fill: var(--others); }
  .grid { stroke: var(--rule); } .one { stroke: var(--ink); stroke-dasharray: 4 3; }
"""


def to_svg(rows: Sequence[Row], title: str) -> str:
    """Returns bars of the ratio to the baseline, ours in blue, in groups of a network on a number of threads."""
    measured = [row for row in rows if row.status == MEASURED and row.ratio is not None]
    groups = [(key, list(group)) for key, group in groupby(measured, key=lambda row: (row.network, row.threads))]
    scale = ticks(0, max([row.ratio or 0 for row in measured], default=1))
    low = TOP + sum(GAP * (len(members) + 1.5) for _, members in groups)
    parts = [tag("title", title), tag("style", Html(STYLE)), tag("rect", width="100%", height="100%", class_="paper")]
    parts.append(tag("text", f"{title}: times as fast as the first of each group", x=16, y=22, class_="label"))
    for value in scale:
        x = _place(value, scale)
        parts.append(tag("line", x1=x, x2=x, y1=TOP - 8, y2=low, class_="one" if value == 1 else "grid"))
        parts.append(tag("text", f"{value:g}", x=x, y=low + 16, text_anchor="middle"))
    y = float(TOP)
    for (network, threads), members in groups:
        head = f"{network}, {threads} thread{'s' if threads > 1 else ''}"
        parts.append(tag("text", head, x=16, y=y + 12, class_="label"))
        for row in members:
            y += GAP
            parts += _bar(row, y, scale)
        y += 1.5 * GAP
    height = low + 32
    size = {"width": WIDTH, "height": height, "viewBox": f"0 0 {WIDTH} {height}"}
    return tag("svg", *parts, xmlns="http://www.w3.org/2000/svg", role="img", aria_label=title, **size) + "\n"


def _bar(row: Row, y: float, scale: Sequence[float]) -> list[Html]:
    assert row.ratio is not None
    start, end = _place(0, scale), _place(row.ratio, scale)
    kind = "ours" if row.variant.startswith("densekit") else "others"
    hint = tag("title", f"{row.variant}: {row.median_ms:.3g} ms")
    return [
        tag("text", row.variant, x=start - 8, y=y + BAR / 2, dy="0.32em", text_anchor="end"),
        tag("rect", hint, x=start, y=y, width=round(end - start, 2), height=BAR, rx=2, class_=kind),
        tag("text", f"{row.ratio:.2f}", x=end + 6, y=y + BAR / 2, dy="0.32em"),
    ]


def _place(value: float, scale: Sequence[float]) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * value / scale[-1], 2)

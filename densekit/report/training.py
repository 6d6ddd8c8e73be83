"""A training run as one page to read: how far it has come, its curves, its pictures, its config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from densekit.report import wording
from densekit.report.evaluation import Evaluation
from densekit.report.html import Section, header, kicker, page, sections_of, tiles
from densekit.report.markup import Html, tag
from densekit.report.svg import Point, line_chart
from densekit.report.tables import conditions_table, points_table, settings_table

_NAMES = {"lr": "learning rate", "steps_per_s": "steps per second", "memory": "peak memory (GiB)"}
_SMOOTH = {"lr", "memory"}  # curves that need no means
_MEANS = 50  # of any other curve of more points than twice this many, which stand faintly behind them
_TABLE_POINTS = 50  # longer curves are in metrics.jsonl only
_WIDE = 8  # a curve of losses that spans more than this factor has a logarithmic axis


@dataclass
class Training:
    """A training run, as far as it has come.

    Attributes:
        title: the name of the run.
        task: "sr" or "seg".
        facts: short ones for the top, such as {"steps": "400 of 400", "time": "3 min"}.
        curves: key -> points (step, value), in the order to show.
        settings: (key, value, default) of what is not left at its default; None where it has none.
        config: all of it, as YAML.
        conditions: what the run was made with: device, times, versions.
        evaluation: of validation pictures; None without such.
        basis: what the headline of `evaluation` was taken over.
    """

    title: str
    task: str
    facts: dict[str, str]
    curves: dict[str, list[Point]]
    settings: list[tuple[str, str, str | None]]
    config: str
    conditions: dict[str, str]
    evaluation: Evaluation | None = None
    basis: str = ""


def to_page(training: Training, *, max_pictures: int = 100) -> str:
    """Returns the page, which needs nothing beside it; equal runs give equal text.

    Args:
        training: what to show.
        max_pictures: as for `densekit.report.write_report`.
    """
    evaluation = training.evaluation
    sections: list[Section] = [("curves", "Curves", [tag("div", *_charts(training.curves), class_="charts")])]
    if evaluation is None:
        loss = [value for _, value in training.curves.get("loss", [])][-1:]
        parts = [tag("p", tag("b", wording.show("loss", value)), class_="value") for value in loss]
        top = tag(
            "header",
            kicker(training.task, "training run"),
            tag("h1", training.title),
            tag("div", *parts, tag("p", "loss; no validation data, so no figure"), class_="headline"),
            *tiles(training.facts),
            class_="top",
        )
        title = training.title
    else:
        top = header(evaluation, kind="training run", basis=training.basis, facts=training.facts)
        title = f"{wording.headline(evaluation)} {wording.label(evaluation.metric)}: {training.title}"
        sections += sections_of(evaluation, max_pictures)
    config = [settings_table(training.settings), conditions_table({"all of it": training.config})]
    sections += [("config", "Config", config), ("run", "Run", [conditions_table(training.conditions)])]
    return page(title, top, sections)


def _charts(curves: dict[str, list[Point]]) -> list[Html]:
    figures = []
    for key, points in curves.items():
        name = _NAMES.get(key) or wording.head(key)
        behind: Sequence[Point] = []
        shown = points
        if len(points) > 2 * _MEANS and key not in _SMOOTH:
            behind, shown = points, means(points)
        values = [value for _, value in shown if math.isfinite(value)]
        is_log = "loss" in key and bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)
        chart = line_chart(shown, f"{name} over steps", "step", "", is_log=is_log, behind=behind)
        table = [points_table(points, "step", name)] if 0 < len(points) <= _TABLE_POINTS else []
        figures.append(tag("figure", tag("figcaption", name), chart, *table))
    return figures


def means(points: Sequence[Point]) -> list[Point]:
    """Returns the means of equal stretches of a curve, about `_MEANS` of them, each at the last point's place.

    Values that are not finite count nowhere.
    """
    size = math.ceil(len(points) / _MEANS)
    result = []
    for start in range(0, len(points), size):
        part = [point for point in points[start : start + size] if math.isfinite(point[1])]
        if part:
            result.append((part[-1][0], math.fsum(value for _, value in part) / len(part)))
    return result

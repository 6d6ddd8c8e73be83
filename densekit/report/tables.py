"""The tables of a page: pictures, classes, confusion matrix, conditions. Each can be read without styles or scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from densekit.report import wording
from densekit.report.evaluation import Evaluation
from densekit.report.gallery import image, name_of
from densekit.report.markup import Html, lines, tag
from densekit.report.pictures import Encoded
from densekit.report.svg import Point, bar, rgb, swatch

_LEVELS = 10  # shades of the confusion matrix; the style sheet has as many


def pictures_table(
    evaluation: Evaluation, thumbnails: dict[int, list[tuple[str, Encoded]]], featured: set[int]
) -> Html:
    """Returns the table of all measured pictures, worst first.

    Args:
        evaluation: with the rows.
        thumbnails: row index -> (key, small picture).
        featured: indexes of the rows that a card shows, to link to.
    """
    keys, order = wording.columns(evaluation), wording.rank(evaluation)
    values = [value for index in order if wording.is_defined(value := evaluation.rows[index].figures.get(keys[0]))]
    numbers = [float(value) for value in values if value is not None]
    heads = [_head("#", "number"), _head("picture", "text")]
    if thumbnails:
        heads.append(tag("th", "seen", scope="col"))
    rising = "descending" if wording.smaller_is_better(evaluation.metric) else "ascending"
    heads += [_head(wording.head(key), "number", rising if key == evaluation.metric else None) for key in keys]
    rows = []
    for index in order:
        row = evaluation.rows[index]
        name = tag("a", row.name, href=f"#picture-{index + 1}") if index in featured else row.name
        cells = [
            tag("td", index + 1, data_value=index + 1, class_="number"),
            tag("th", name, scope="row", data_value=row.name),
        ]
        if thumbnails:
            small = thumbnails.get(index, [])
            seen = [image(picture, f"{name_of(key)} of {row.name}", loading="lazy") for key, picture in small]
            cells.append(tag("td", *seen, class_="seen"))
        for key in keys:
            value = row.figures.get(key)
            parts: list[object] = [wording.show(key, value)]
            if key == evaluation.metric and value is not None and math.isfinite(value):
                parts.append(bar(_length(value, numbers)))
            sortable = None if value is None or math.isnan(value) else repr(float(value))
            cells.append(tag("td", *parts, data_value=sortable, class_="number"))
        rows.append(tag("tr", *cells))
    caption = tag("caption", f"{len(order)} pictures, worst first by {wording.label(evaluation.metric)}")
    return _scroll(tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="sortable"))


def classes_table(evaluation: Evaluation) -> Html:
    """Returns each class's figures as numbers and bars, in the order of the classes."""
    keys = list(evaluation.per_class)
    shares = None
    if evaluation.matrix is not None and evaluation.matrix.sum():
        shares = evaluation.matrix.sum(axis=1) / evaluation.matrix.sum()
    heads = [
        tag("th", "class", scope="col"),
        *(tag("th", wording.head(key), scope="col", class_="number") for key in keys),
    ]
    if shares is not None:
        heads.append(tag("th", "share of pixels", scope="col", class_="number"))
    rows = []
    for number, name in enumerate(evaluation.classes):
        colour = evaluation.palette[number] if number < len(evaluation.palette) else None
        cells = [tag("th", *([swatch(colour), " "] if colour else []), name, scope="row")]
        for key in keys:
            value = evaluation.per_class[key][number]
            drawn = [bar(value, rgb(colour) if colour else None)] if value is not None and math.isfinite(value) else []
            cells.append(tag("td", wording.show(key, value), *drawn, class_="number"))
        if shares is not None:
            cells.append(tag("td", f"{100 * shares[number]:.2f} %", class_="number"))
        rows.append(tag("tr", *cells))
    caption = tag("caption", "Figures of each class; a dash where it does not occur")
    return _scroll(tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="classes"))


def matrix_table(evaluation: Evaluation) -> Html:
    """Returns the confusion matrix in percent of each target class, right shares in blue, wrong ones in orange."""
    assert evaluation.matrix is not None
    counts = np.asarray(evaluation.matrix)
    corner = tag("th", "target ↓  predicted →", scope="col")
    heads = [corner, *(tag("th", tag("span", name), scope="col") for name in evaluation.classes)]
    rows = []
    for number, name in enumerate(evaluation.classes):
        total = int(counts[number].sum())
        cells = [tag("th", name, scope="row")]
        for other, counted in enumerate(counts[number]):
            if not total:
                cells.append(tag("td", wording.MISSING))
                continue
            share = int(counted) / total
            level = min(_LEVELS, math.ceil(_LEVELS * share - 0.5)) if share else 0
            hint = f"{name} as {evaluation.classes[other]}: {int(counted):,} of {total:,} pixels"
            shade = f"{'right' if number == other else 'wrong'} s{level}"
            cells.append(tag("td", _percent(share), title=hint, class_=shade))
        rows.append(tag("tr", *cells))
    caption = tag("caption", "Percent of each target class; blue is right, orange is wrong")
    return _scroll(tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="matrix"))


def points_table(points: Sequence[Point], x_label: str, y_label: str) -> Html:
    """Returns a curve's points as a table, folded away."""
    rows = [tag("tr", tag("td", f"{x:.6g}"), tag("td", f"{y:.6g}")) for x, y in points]
    heads = tag("thead", tag("tr", tag("th", x_label, scope="col"), tag("th", y_label, scope="col")))
    return tag("details", tag("summary", "values"), _scroll(tag("table", heads, tag("tbody", *rows), class_="points")))


def conditions_table(conditions: dict[str, str]) -> Html:
    """Returns what was measured with what; long texts, such as a config, are folded away."""
    rows = []
    for key, value in conditions.items():
        if "\n" in value.strip():
            shown = tag("details", tag("summary", f"{len(value.splitlines())} lines"), tag("pre", lines(value)))
        else:
            shown = tag("code", value)
        rows.append(tag("tr", tag("th", key.replace("_", " "), scope="row"), tag("td", shown)))
    return _scroll(tag("table", tag("tbody", *rows), class_="conditions"))


def settings_table(settings: Sequence[tuple[str, str, str | None]]) -> Html:
    """Returns the keys of a config that are not left at their defaults, with those."""
    heads = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in ("key", "value", "default"))))
    rows = []
    for key, value, default in settings:
        cells = [tag("td", tag("code", text)) for text in (value, wording.MISSING if default is None else default)]
        rows.append(tag("tr", tag("th", tag("code", key), scope="row"), *cells))
    caption = tag("caption", f"{len(rows)} keys that have no default or are not left at it")
    return _scroll(tag("table", caption, heads, tag("tbody", *rows), class_="settings"))


def _head(text: str, kind: str, order: str | None = None) -> Html:
    return tag("th", text, scope="col", data_kind=kind, aria_sort=order, class_=kind)


def _scroll(table: Html) -> Html:
    """Returns a table that scrolls sideways by itself, so that the page never does, by keyboard too."""
    return tag("div", table, class_="scroll", tabindex=0)


def _length(value: float, values: Sequence[float]) -> float:
    """Returns a bar's length: from 0 for shares; else from a little below the smallest figure, to show differences."""
    low, high = min(values), max(values)
    if low >= 0 and high <= 1:
        return value
    base = low - 0.25 * (high - low)
    return (value - base) / (high - base) if high > low else 1.0


def _percent(share: float) -> str:
    if share == 0:
        return "0"
    percent = 100 * share
    return "<0.1" if percent < 0.05 else f"{percent:.1f}"

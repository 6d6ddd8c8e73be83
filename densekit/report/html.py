"""One self-contained HTML page: no host is contacted, and without scripts it still says everything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from densekit.report import wording
from densekit.report.evaluation import Evaluation, Pictures
from densekit.report.gallery import card, choose, with_unit
from densekit.report.markup import Html, tag
from densekit.report.pictures import Encoded, load, thumbnails
from densekit.report.svg import line_chart, strip, swatch
from densekit.report.tables import classes_table, conditions_table, matrix_table, pictures_table, points_table

_FOLDER = Path(__file__).parent
_TASKS = {"sr": "super-resolution", "seg": "segmentation"}
_AXES = {
    "calibration": ("confidence", "accuracy"),
    "tempered-calibration": ("confidence", "accuracy"),
    "risk-coverage": ("coverage", "risk"),
}
_TABLE_POINTS = 50  # longer curves are in the JSON report only

Section = tuple[str, str, list[Html]]  # id, title, content


def to_html(evaluation: Evaluation, *, max_pictures: int = 100) -> str:
    """Returns the page; equal evaluations give equal text.

    Args:
        evaluation: what to show.
        max_pictures: rows whose pictures are made (again) to be shown: first those of the cards, then from the worst.
    """
    title = f"{wording.headline(evaluation)} {wording.label(evaluation.metric)}: {evaluation.title}"
    return page(title, header(evaluation), sections_of(evaluation, max_pictures))


def page(title: str, top: Html, sections: list[Section]) -> str:
    """Returns a page that needs nothing beside it: what is at its top, links to its sections, and those."""
    links = [tag("a", title, href=f"#{name}") for name, title, _ in sections]
    parts = [tag("section", tag("h2", title), *content, id=name, aria_label=title) for name, title, content in sections]
    body = tag(
        "body", top, tag("nav", *links, aria_label="parts of this page"), tag("main", *parts),
        tag("script", Html(_part("report.js"))),
    )  # fmt: skip
    return f'<!DOCTYPE html>\n<html lang="en">{_head(title)}{body}</html>\n'


def sections_of(evaluation: Evaluation, max_pictures: int) -> list[Section]:
    """Returns what there is to show of an evaluation; its pictures are made here."""
    places = choose(evaluation)
    featured = {place.index for place in places}
    cards, small = [], {}
    for place in places[:max_pictures]:
        pictures = load(evaluation.rows[place.index])
        cards.append(card(evaluation, place, pictures))
        small.update(_thumbnails(evaluation, place.index, pictures))
    others = [index for index in wording.rank(evaluation) if index not in featured]
    for index in others[: max(0, max_pictures - len(places))]:
        small.update(_thumbnails(evaluation, index, load(evaluation.rows[index])))

    return _sections(evaluation, cards, small, featured if cards else set())


def _head(title: str) -> Html:
    style, script = _part("report.css"), _part("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        # quotes are safe inside double ones, and a policy is easier to check by eye with them
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(style)),
    )


def header(evaluation: Evaluation, *, kind: str = "", basis: str = "", facts: Mapping[str, str] | None = None) -> Html:
    """Returns the top of a page: title, headline and further figures, what failed, and a dot for each picture.

    Args:
        evaluation: what was measured.
        kind: of the page, beside its task.
        basis: what the headline was taken over, where it is not the rows.
        facts: stand among the further figures.
    """
    metric, failed = evaluation.metric, wording.failed(evaluation)
    value = wording.show(metric, evaluation.summary.get(metric))
    figure = tag("p", tag("b", value), " ", tag("span", wording.unit(metric)), class_="value")
    parts = [
        kicker(evaluation.task, kind),
        tag("h1", evaluation.title),
        tag(
            "div",
            figure,
            tag(
                "div",
                tag("p", tag("b", wording.label(metric)), ", ", basis or wording.basis(evaluation)),
                tag(
                    "p",
                    "protocol ",
                    tag("code", wording.protocol(evaluation)),
                    *_meaning(evaluation),
                    class_="protocol",
                ),
            ),
            class_="headline" if not failed else "headline partial",
        ),
    ]
    others = {wording.label(key): with_unit(key, value) for key, value in evaluation.summary.items() if key != metric}
    parts += tiles({**others, **(facts or {})})
    if failed:
        count = wording.count(evaluation)
        title = f"{len(failed)} of {count.total} picture{'s' if count.total != 1 else ''} failed"
        rows = [tag("li", tag("b", row.name), " ", row.error) for row in failed]
        note = "The figures above leave them out: they are not those of the whole data set."
        parts.append(tag("section", tag("h2", title), tag("p", note), tag("ul", *rows), class_="failed", id="failed"))
    points = _measured(evaluation)
    if len(points) > 1:
        worst = "right" if wording.smaller_is_better(metric) else "left"
        said = f"{wording.head(metric)} of {len(points)} pictures, one dot each; worse to the {worst}"
        chart = strip(points, metric, evaluation.summary.get(metric), said)
        parts.append(tag("figure", chart, tag("figcaption", said + "; the line is the headline")))
    return tag("header", *parts, class_="top")


def tiles(facts: Mapping[str, str]) -> list[Html]:
    """Returns figures side by side, each below its name; nothing of none."""
    parts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()]
    return [tag("dl", *parts, class_="tiles")] if parts else []


def kicker(task: str, kind: str = "") -> Html:
    """Returns the small line above a title."""
    return tag("p", " · ".join(filter(None, ("densekit", _TASKS.get(task, task), kind))), class_="kicker")


def _meaning(evaluation: Evaluation) -> list[str]:
    meaning = evaluation.conditions.get("protocol_means")
    return [": " + meaning.replace("`", "")] if meaning else []


def _sections(
    evaluation: Evaluation, cards: list[Html], small: dict[int, list[tuple[str, Encoded]]], featured: set[int]
) -> list[Section]:
    sections: list[Section] = []
    if cards:
        zoom = [_choice("radio", "fit", name="zoom", value="fit", checked=True)]
        zoom.append(_choice("radio", "1:1", name="zoom", value="one"))
        sharp = _choice("checkbox", "show single pixels", class_="pixelated")
        tools = tag("div", tag("fieldset", tag("legend", "zoom"), *zoom), sharp, class_="tools")
        sections.append(
            ("compare", "Worst, median, best", [tools, *_legend(evaluation), tag("div", *cards, class_="cards")])
        )
    if wording.columns(evaluation) and wording.rank(evaluation):
        sections.append(("pictures", "All pictures", [pictures_table(evaluation, small, featured)]))
    if evaluation.per_class:
        sections.append(("classes", "Classes", [classes_table(evaluation)]))
    if evaluation.matrix is not None:
        sections.append(("confusion", "Confusion matrix", [matrix_table(evaluation)]))
    if evaluation.curves:
        sections.append(("curves", "Curves", [tag("div", *_curves(evaluation), class_="charts")]))
    sections.append(("conditions", "Conditions", [conditions_table(evaluation.conditions)]))
    return sections


def _legend(evaluation: Evaluation) -> list[Html]:
    named = list(zip(evaluation.classes, evaluation.palette, strict=False))
    entries = [tag("li", swatch(colour), " ", name) for name, colour in named]
    return [tag("ul", *entries, class_="legend", aria_label="colours of the classes")] if entries else []


def _choice(kind: str, text: str, **attributes: object) -> Html:
    return tag("label", tag("input", type=kind, autocomplete="off", **attributes), " ", text)


def _curves(evaluation: Evaluation) -> list[Html]:
    figures = []
    for name, points in evaluation.curves.items():
        x, y = _AXES.get(name.replace("_", "-"), ("step", name))
        chart = line_chart(points, f"{name}: {y} over {x}", x, y, is_share=name.endswith("calibration"))
        values = [points_table(points, x, y)] if 0 < len(points) <= _TABLE_POINTS else []
        figures.append(tag("figure", tag("figcaption", name), chart, *values))
    return figures


def _thumbnails(evaluation: Evaluation, index: int, pictures: Pictures | str) -> dict[int, list[tuple[str, Encoded]]]:
    return {} if isinstance(pictures, str) else {index: thumbnails(pictures, evaluation.task)}


def _measured(evaluation: Evaluation) -> list[tuple[str, float]]:
    figures = [(evaluation.rows[index].name, evaluation.rows[index].figures) for index in wording.rank(evaluation)]
    found = [(name, values.get(evaluation.metric)) for name, values in figures]
    return [(name, float(value)) for name, value in found if value is not None and wording.is_defined(value)]


def _part(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()

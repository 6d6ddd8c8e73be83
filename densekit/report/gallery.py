"""The worst, the median and the best picture, each to be compared with what it should be."""

from __future__ import annotations

from dataclasses import dataclass

from densekit.report import wording
from densekit.report.evaluation import Evaluation, Pictures, Row
from densekit.report.markup import Html, tag
from densekit.report.pictures import MAP, PAIR, SIDES, Crop, Encoded, crop

WORST = 5

# fmt: off
_NAMES = {
    "lr": "input, nearest", "bicubic": "bicubic", "sr": "result", "hr": "original", "error": "error",
    "image": "image", "prediction": "prediction", "target": "target", "wrong": "wrong pixels",
}
# fmt: on


@dataclass(frozen=True)
class Place:
    """A row to show, and why: "worst", "2nd worst", "median" or "best"."""

    index: int
    title: str


def choose(evaluation: Evaluation) -> list[Place]:
    """Returns the worst five pictures, the median and the best, each once, worst first."""
    ranked = [
        index
        for index in wording.rank(evaluation)
        if (value := evaluation.rows[index].figures.get(evaluation.metric)) is not None and value == value
    ]
    last, middle = len(ranked) - 1, (len(ranked) - 1) // 2
    titles = {}
    for number in sorted({*range(min(WORST, last + 1)), middle, last} & set(range(last + 1))):
        if number == last and last:
            titles[number] = "best"
        elif number == middle and last > 1:
            titles[number] = "median"
        else:
            titles[number] = ("worst", "2nd worst", "3rd worst", "4th worst", "5th worst")[number] if last else "only"
    return [Place(ranked[number], title) for number, title in titles.items()]


def card(evaluation: Evaluation, place: Place, pictures: Pictures | str) -> Html:
    """Returns one picture's part of the page: figures, comparison, map of errors, and where the crop lies."""
    row = evaluation.rows[place.index]
    figures = [
        tag("span", wording.label(key), " ", tag("b", with_unit(key, row.figures.get(key))))
        for key in wording.columns(evaluation)[:4]
    ]
    heading = tag("h3", tag("span", place.title, class_=f"badge {place.title.split()[-1]}"), " ", row.name)
    top = tag("header", heading, tag("p", *_spaced(figures), class_="figures"))
    if isinstance(pictures, str):
        return tag("article", top, tag("p", pictures, class_="note"), class_="card", id=f"picture-{place.index + 1}")
    cut = crop(pictures, evaluation.task)
    return tag(
        "article", top, _compare(row, evaluation.task, cut), _aside(row, evaluation.task, cut),
        class_="card", id=f"picture-{place.index + 1}",
    )  # fmt: skip


def with_unit(key: str, value: float | None) -> str:
    """Returns a figure with its unit."""
    return f"{wording.show(key, value)} {wording.unit(key)}".rstrip()


def name_of(key: str) -> str:
    """Returns what a picture of this key is called on the page."""
    return _NAMES.get(key, key)


def image(encoded: Encoded, alternative: str, **attributes: object) -> Html:
    """Returns an <img> that cannot be dragged away from under a slider."""
    size = {"width": encoded.width, "height": encoded.height}
    return tag("img", src=encoded.uri, alt=alternative, draggable="false", **size, **attributes)


def _compare(row: Row, task: str, cut: Crop) -> Html:
    """Returns the pictures side by side; the script lays two of them over each other, with a slider."""
    keys = [key for key in SIDES[task] if key in cut.parts]
    keys += [key for key in cut.parts if key not in keys and key != MAP[task]]
    left, right = PAIR[task] if set(PAIR[task]) <= set(keys) else (keys[0], keys[-1])
    figures = []
    for key in keys:
        alternative = f"{name_of(key)} of {row.name}, crop"
        inner = image(cut.parts[key], alternative, class_="coarse" if key == "lr" else None)
        figures.append(tag("figure", inner, tag("figcaption", name_of(key)), data_key=key))
    stage = tag("div", *figures, tag("div", class_="divide"), class_="stage")

    def select(side: str, chosen: str) -> Html:
        options = [tag("option", name_of(key), value=key, selected=key == chosen) for key in keys]
        return tag("select", *options, class_=side, aria_label=f"{side} side, {row.name}", autocomplete="off")

    slider = tag(
        "input", type="range", min=0, max=100, step="any", value=50, autocomplete="off",
        aria_label=f"divide between left and right, {row.name}",
    )  # fmt: skip
    controls = tag("div", select("left", left), slider, select("right", right), class_="controls")
    return tag("div", tag("div", stage, class_="frame"), controls, class_="compare", data_width=cut.width)


def _aside(row: Row, task: str, cut: Crop) -> Html:
    figures = []
    if MAP[task] in cut.parts:
        name = name_of(MAP[task])
        figures.append(_captioned(image(cut.parts[MAP[task]], f"{name} of {row.name}, crop"), name))
    shown = [part for key, part in cut.parts.items() if key != MAP[task]]
    how = "pixels are exact" if all(part.is_exact for part in shown) else "compressed for this page"
    size = f"{cut.whole[0]} × {cut.whole[1]} pixels"
    if cut.place:
        where = (
            f"above: where the error is largest, {cut.width} × {cut.height} at {cut.left}, {cut.top} of {size}; {how}"
        )
        figures.append(_captioned(image(cut.place, f"{row.name}, the crop framed"), where))
    else:
        figures.append(tag("p", f"the whole picture, {size}; {how}", class_="note"))
    return tag("div", *figures, class_="aside")


def _captioned(picture: Html, caption: str) -> Html:
    return tag("figure", picture, tag("figcaption", caption))


def _spaced(parts: list[Html]) -> list[Html | str]:
    return [piece for part in parts for piece in (part, " ")]

from __future__ import annotations

import base64
import hashlib
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit.errors import ImageError, Interrupted
from densekit.files import printable
from densekit.report import Evaluation, Row
from densekit.report.html import to_html
from tests.report.page import parse
from tests.report.sample import HOSTILE, seg_evaluation, sr_evaluation, sr_pictures


def names_in_table(html: str) -> list[str]:
    (table,) = parse(html).find("table", class_="sortable")
    return [cell.text for cell in table.find("th", scope="row")]


@pytest.mark.parametrize(
    "evaluation", [sr_evaluation(count=2, failed=1, with_pictures=True), seg_evaluation()], ids=["sr", "seg"]
)
def test_nothing_is_loaded_from_anywhere(evaluation):
    html = to_html(evaluation)
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    page = parse(html)
    for element in page.find():
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            value = element.attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (element.name, key, value)
    ids = {element.attributes["id"] for element in page.find() if "id" in element.attributes}
    assert {link.attributes["href"][1:] for link in page.find("a")} <= ids


def test_the_policy_allows_this_style_and_this_script_and_nothing_else():
    page = parse(to_html(sr_evaluation()))
    (meta,) = page.find("meta", http_equiv="Content-Security-Policy")
    policy = dict(part.strip().split(" ", 1) for part in meta.attributes["content"].split(";"))
    for kind, name in (("style", "style-src"), ("script", "script-src")):
        (element,) = page.find(kind)
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert policy.pop(name) == f"'sha256-{digest}'"
    assert policy == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    for element in page.find():  # which the policy would silence
        assert not [key for key in element.attributes if key == "style" or key.startswith("on")]


def test_hostile_names_are_text_and_nothing_else():
    evaluation = sr_evaluation(HOSTILE, with_pictures=True, title="<script>alert(2)</script>")
    evaluation.rows.append(Row("<i>failed</i>", {}, "<script>alert(3)</script> & more"))
    evaluation.conditions.update({"<u>key</u>": "<script>alert(4)</script>", "text": "<b>\n</pre><script>\x07"})
    html = to_html(evaluation)
    html.encode()  # no lone surrogate is left
    page = parse(html)
    assert len(page.find("script")) == 1
    assert not page.find("i")
    assert not page.find("u")
    assert sorted(names_in_table(html)) == sorted(printable(name) for name in HOSTILE)
    assert page.find("h1")[0].text == "<script>alert(2)</script>"
    assert page.find("section", id="failed")[0].find("li")[0].text == "<i>failed</i> <script>alert(3)</script> & more"
    assert "<b>\n</pre><script>\\x07" in [element.text for element in page.find("pre")]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html.replace(page.find("style")[0].text, ""))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(), min_size=1), min_size=1, max_size=4))
def test_any_text_comes_back_as_it_is_printed(names):
    evaluation = sr_evaluation([*names], title=names[0])
    html = to_html(evaluation)
    assert names_in_table(html) == [printable(name) for name in reversed(names)]
    assert parse(html).find("h1")[0].text == printable(names[0])


def test_equal_input_gives_equal_bytes():
    first, second = (to_html(sr_evaluation(count=3, failed=2, with_pictures=True)) for _ in range(2))
    assert first == second


def test_a_hundred_pictures_of_noise_fit_five_megabytes():
    calls = []
    noise = [sr_pictures(k, 300, 400) for k in range(3)]
    evaluation = sr_evaluation(count=100)
    for k, row in enumerate(evaluation.rows):
        row.pictures = lambda k=k: calls.append(k) or noise[k % 3]
    html = to_html(evaluation)
    assert len(html.encode()) < 5_000_000
    assert sorted(calls) == list(range(100))  # each once
    assert html.count("<img") == 7 * 6 + 100 * 2


def test_pictures_are_made_for_as_many_rows_as_asked_the_worst_first():
    calls = []
    evaluation = sr_evaluation(count=20)
    for k, row in enumerate(evaluation.rows):
        row.pictures = lambda k=k: calls.append(k) or sr_pictures(k)
    to_html(evaluation, max_pictures=9)
    assert calls == [19, 18, 17, 16, 15, 10, 0, 14, 13]
    calls.clear()
    page = parse(to_html(evaluation, max_pictures=0))
    assert not calls
    assert not page.find("img")
    assert len(page.find("table", class_="sortable")[0].find("tr")) == 21


def test_the_table_is_worst_first_without_scripts_and_says_so():
    html = to_html(sr_evaluation(count=4))
    assert names_in_table(html) == ["img_003.png", "img_002.png", "img_001.png", "img_000.png"]
    (head,) = parse(html).find("th", aria_sort="ascending")
    assert head.text == "PSNR (dB)"


def test_a_figure_that_counts_errors_is_worst_where_it_is_largest():
    rows = [Row(str(k), {"lpips": k / 10}) for k in range(3)]
    html = to_html(Evaluation("t", "sr", "lpips", rows, {"lpips": 0.1}, {"protocol": "p"}))
    assert names_in_table(html) == ["2", "1", "0"]
    assert [head.text for head in parse(html).find("th", aria_sort="descending")] == ["LPIPS"]


def test_cards_are_the_worst_five_the_median_and_the_best():
    page = parse(to_html(sr_evaluation(count=21)))
    cards = [card.find("h3")[0].text for card in page.find("article")]
    assert cards == [
        "worst img_020.png", "2nd worst img_019.png", "3rd worst img_018.png", "4th worst img_017.png",
        "5th worst img_016.png", "median img_010.png", "best img_000.png",
    ]  # fmt: skip
    linked = {link.text for link in page.find("table", class_="sortable")[0].find("a")}
    assert linked == {card.split()[-1] for card in cards}


@pytest.mark.parametrize(
    ("count", "titles"),
    [(1, ["only"]), (2, ["worst", "best"]), (3, ["worst", "median", "best"]), (0, [])],
)
def test_few_pictures_are_each_shown_once(count, titles):
    page = parse(to_html(sr_evaluation(count=count)))
    assert [badge.text for badge in page.find("span", class_="badge")] == titles


def test_a_card_holds_static_pictures_and_what_the_slider_needs():
    (card,) = parse(to_html(sr_evaluation(count=1, with_pictures=True))).find("article")
    stage = card.find("div", class_="stage")[0]
    assert [figure.attributes["data-key"] for figure in stage.find("figure")] == ["lr", "bicubic", "sr", "hr"]
    assert [caption.text for caption in stage.find("figcaption")] == ["input, nearest", "bicubic", "result", "original"]
    assert all(image.attributes["draggable"] == "false" for image in card.find("img"))
    chosen = [option.attributes["value"] for option in card.find("option") if "selected" in option.attributes]
    assert chosen == ["bicubic", "sr"]
    (slider,) = card.find("input", type="range")
    assert slider.attributes["aria-label"] == "divide between left and right, img_000.png"


@pytest.mark.parametrize(
    "evaluation", [sr_evaluation(count=2, failed=1, with_pictures=True), seg_evaluation()], ids=["sr", "seg"]
)
def test_every_part_has_a_name_for_a_screen_reader(evaluation):
    page = parse(to_html(evaluation))
    assert page.find("html")[0].attributes["lang"] == "en"
    assert all(image.attributes["alt"] for image in page.find("img"))
    assert all(select.attributes["aria-label"] for select in page.find("select"))
    for svg in page.find("svg"):
        assert svg.attributes.get("aria-hidden") == "true" or svg.attributes["aria-label"]
    for head in page.find("th"):
        assert head.attributes["scope"] in ("col", "row")
    for table in page.find("table"):
        if not table.has("class_", "conditions") and not table.has("class_", "points"):
            assert table.find("caption")
    ids = [element.attributes["id"] for element in page.find() if "id" in element.attributes]
    assert len(ids) == len(set(ids))


def test_failed_pictures_are_listed_and_the_headline_says_how_many_it_stands_for():
    page = parse(to_html(sr_evaluation(count=4, failed=1)))
    assert "PSNR, mean of 4 of 5 pictures" in page.find("div", class_="headline")[0].text
    failed = page.find("section", id="failed")[0]
    assert failed.find("h2")[0].text == "1 of 5 pictures failed"
    assert [item.text for item in failed.find("li")] == ["broken_0.png truncated PNG; expected a whole file"]
    assert "broken_0.png" not in names_in_table(to_html(sr_evaluation(count=4, failed=1)))


def test_a_report_of_failures_alone_has_a_dash_for_its_figure():
    page = parse(to_html(sr_evaluation(count=0, failed=2, summary={"psnr": None})))
    assert "–" in page.find("p", class_="value")[0].text
    assert "mean of 0 of 2 pictures" in page.find("div", class_="headline")[0].text
    assert not page.find("article")
    assert [title.text for title in page.find("main")[0].find("h2")] == ["Conditions"]


def test_the_protocol_stands_beside_the_figure_and_its_lack_is_named():
    assert "protocol rdn-y" in parse(to_html(sr_evaluation())).find("div", class_="headline")[0].text
    page = parse(to_html(sr_evaluation(conditions={})))
    assert "protocol not stated" in page.find("div", class_="headline")[0].text


def test_figures_without_a_value_are_dashes_and_come_last():
    rows = [
        Row("nan", {"psnr": math.nan}),
        Row("none", {"psnr": None}),
        Row("inf", {"psnr": math.inf}),
        Row("x", {"psnr": 1.0}),
    ]
    html = to_html(sr_evaluation(rows=rows, summary={"psnr": math.inf}))
    assert names_in_table(html) == ["x", "inf", "nan", "none"]
    cells = [cell.text for cell in parse(html).find("table", class_="sortable")[0].find("td", class_="number")]
    assert cells[1::2] == ["1.00", "∞", "–", "–"]


def test_pictures_that_cannot_be_made_again_do_not_cost_the_report():
    def gone():
        raise ImageError("a.png: No such file")

    evaluation = sr_evaluation(count=1)
    evaluation.rows[0].pictures = gone
    page = parse(to_html(evaluation))
    assert page.find("article")[0].find("p", class_="note")[0].text == (
        "its pictures could not be made again (a.png: No such file)"
    )


def test_an_interruption_while_pictures_are_made_is_not_swallowed():
    def interrupted():
        raise Interrupted("stopped", 2)

    evaluation = sr_evaluation(count=1)
    evaluation.rows[0].pictures = interrupted
    with pytest.raises(Interrupted):
        to_html(evaluation)


def test_classes_have_bars_shares_and_dashes_where_they_do_not_occur():
    (table,) = parse(to_html(seg_evaluation())).find("table", class_="classes")
    rows = [[cell.text.strip() for cell in row.find() if cell.name in ("th", "td")] for row in table.find("tr")]
    assert rows == [
        ["class", "IoU", "Dice", "share of pixels"],
        ["sky", "0.8570", "0.9230", "66.67 %"],
        ["road", "0.7500", "0.8570", "33.33 %"],
        ["<b>pole</b>", "–", "–", "0.00 %"],
    ]
    assert [len(row.find("svg", class_="bar")) for row in table.find("tr")] == [0, 2, 2, 0]


def test_the_confusion_matrix_is_in_percent_of_each_target():
    (table,) = parse(to_html(seg_evaluation())).find("table", class_="matrix")
    rows = [[cell.text for cell in row.find("td")] for row in table.find("tr")[1:]]
    assert rows == [["90.0", "10.0", "0"], ["10.0", "90.0", "0"], ["–", "–", "–"]]
    cells = table.find("td")
    assert cells[0].has("class_", "right")
    assert cells[1].attributes["title"] == "sky as road: 10 of 100 pixels"
    assert (cells[1].attributes["class"], cells[2].attributes["class"]) == ("wrong s1", "wrong s0")


def test_figures_of_pixel_counts_do_not_claim_to_be_means_of_pictures():
    page = parse(to_html(seg_evaluation()))
    assert "mIoU, all pixels of 3 of 3 pictures" in page.find("div", class_="headline")[0].text


def test_curves_have_axes_points_and_a_table():
    charts = parse(to_html(seg_evaluation())).find("div", class_="charts")[0].find("figure")
    assert [chart.find("svg")[0].attributes["aria-label"] for chart in charts] == [
        "calibration: accuracy over confidence", "risk-coverage: risk over coverage",
    ]  # fmt: skip
    assert [cell.text for cell in charts[0].find("td")] == ["0.5", "0.4", "0.9", "0.85"]
    assert len(charts[0].find("line", class_="ideal")) == 1


def test_an_unknown_kind_of_picture_is_shown_by_its_key():
    evaluation = sr_evaluation(count=1)
    evaluation.rows[0].pictures = lambda: {**sr_pictures(), "<other>": np.zeros((96, 128, 3), np.uint8)}
    captions = [caption.text for caption in parse(to_html(evaluation)).find("figcaption")]
    assert "<other>" in captions

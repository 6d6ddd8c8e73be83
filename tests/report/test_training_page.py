from __future__ import annotations

import math

import pytest

from densekit.files import printable
from densekit.report.training import Training, means, to_page
from tests.report.page import parse
from tests.report.sample import HOSTILE, seg_evaluation, sr_evaluation


def curve(count, value=lambda k: 1 / k):
    return [(float(k), value(k)) for k in range(1, count + 1)]


def training(**changes):
    fields = {
        "title": "my run",
        "task": "sr",
        "facts": {"steps": "300 of 400", "time": "3 min 20 s"},
        "curves": {"loss": curve(300), "psnr": curve(6, lambda k: 30.0 + k), "lr": curve(300, lambda k: 1e-3)},
        "settings": [("model.name", "rdn", None), ("optim.learning_rate", "0.005", "0.001")],
        "config": "task: sr\nmodel:\n  name: rdn\n",
        "conditions": {"state": "under way", "device": "cpu, 1 thread, fp32"},
        "evaluation": sr_evaluation(count=4, with_pictures=True, title="my run"),
        "basis": "all validation pictures, step 300 of 400",
    }
    return Training(**{**fields, **changes})


def figures_of(html):
    return {f.find("figcaption")[0].text: f for f in parse(html).find("section", id="curves")[0].find("figure")}


def test_the_page_says_how_far_the_run_is_how_good_and_made_with_what():
    page = parse(to_page(training()))
    assert page.find("title")[0].text == "28.50 dB PSNR: my run"
    assert page.find("p", class_="kicker")[0].text == "densekit · super-resolution · training run"
    assert page.find("p", class_="value")[0].text == "28.50 dB"
    assert "PSNR, all validation pictures, step 300 of 400" in page.find("div", class_="headline")[0].text
    tiles = {tile.children[0].text: tile.children[1].text for tile in page.find("dl")[0].children}
    assert tiles == {"SSIM": "0.8900", "steps": "300 of 400", "time": "3 min 20 s"}
    links = [link.text for link in page.find("nav")[0].find("a")]
    assert links == ["Curves", "Worst, median, best", "All pictures", "Conditions", "Config", "Run"]
    rows = [[cell.text for cell in row.children] for row in page.find("table", class_="settings")[0].find("tr")]
    expected = [["key", "value", "default"], ["model.name", "rdn", "–"], ["optim.learning_rate", "0.005", "0.001"]]
    assert rows == expected
    assert "task: sr\nmodel:\n  name: rdn" in [element.text for element in page.find("pre")]
    assert len(page.find("article", class_="card")) == 4


def test_a_run_without_pictures_is_headed_by_its_loss():
    page = parse(to_page(training(evaluation=None)))
    assert page.find("title")[0].text == "my run"
    assert page.find("p", class_="value")[0].text == "0.0033"
    assert [link.text for link in page.find("nav")[0].find("a")] == ["Curves", "Config", "Run"]
    assert not page.find("img")
    empty = parse(to_page(training(evaluation=None, curves={})))
    assert not empty.find("p", class_="value")
    assert not empty.find("figure")


def test_noisy_curves_have_their_means_before_them_and_few_points_are_left_as_they_are():
    figures = figures_of(to_page(training()))
    assert list(figures) == ["loss", "PSNR (dB)", "learning rate"]
    lines = figures["loss"].find("polyline")
    assert [line.attributes["class"] for line in lines] == ["curve faint", "curve"]
    assert [len(line.attributes["points"].split()) for line in lines] == [300, 50]
    assert len(figures["PSNR (dB)"].find("polyline")) == 1
    assert len(figures["PSNR (dB)"].find("circle")) == 6
    assert len(figures["learning rate"].find("polyline")) == 1  # it has no noise to be taken away


def test_a_loss_that_falls_far_has_a_logarithmic_axis_and_others_none():
    texts = [element.text for element in figures_of(to_page(training()))["loss"].find("text")]
    assert {"1", "0.1", "0.01"} <= {*texts}
    flat = training(curves={"loss": curve(20, lambda k: 1 + k / 100)})
    assert "1.1" in [element.text for element in figures_of(to_page(flat))["loss"].find("text")]
    below = training(curves={"loss": curve(20, lambda k: 10 - k)})  # such losses have no logarithm
    assert "-5" in [element.text for element in figures_of(to_page(below))["loss"].find("text")]


def test_means_keep_the_mean_and_leave_out_what_is_not_finite():
    points = curve(1000, math.sin)
    assert len(means(points)) == 50
    assert math.fsum(y for _, y in means(points)) / 50 == pytest.approx(math.fsum(y for _, y in points) / 1000)
    points[5] = (6.0, math.nan)
    assert all(math.isfinite(y) for _, y in means(points))
    assert means([(1.0, math.inf)]) == []


@pytest.mark.parametrize("evaluation", [None, sr_evaluation(count=2, with_pictures=True), seg_evaluation()])
def test_nothing_is_loaded_from_anywhere(evaluation):
    html = to_page(training(evaluation=evaluation))
    assert "http:" not in html
    assert "https:" not in html
    page = parse(html)
    for element in page.find():
        for key in ("src", "href"):
            value = element.attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (element.name, key, value)


def test_hostile_names_are_text_and_nothing_else():
    for text in HOSTILE:
        made = training(
            title=text,
            settings=[(text, text, text)],
            config=f"a: {text}",
            conditions={text: text},
            curves={text: curve(3)},
            facts={text: text},
            evaluation=None,
        )
        html = to_page(made)
        html.encode()
        page = parse(html)
        assert page.find("h1")[0].text == printable(text)
        assert len(page.find("script")) == 1
        assert not page.find("b", class_="x")
        assert [cell.text for cell in page.find("table", class_="settings")[0].find("code")] == [printable(text)] * 3


def test_equal_input_gives_equal_bytes():
    assert to_page(training()) == to_page(training())

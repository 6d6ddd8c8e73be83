"""The page in a real browser; a Chromium or Chrome on the PATH, or named by $DENSEKIT_CHROMIUM."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
from PIL import Image

from densekit.report import write_report
from densekit.report.training import to_page
from tests.report.sample import HOSTILE, seg_evaluation, sr_evaluation, sr_pictures
from tests.report.test_training_page import training
from tools.browser import Browser, find_browser
from tools.make_report_picture import take

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="found no Chromium or Chrome"),
]

ORDER = "[...document.querySelectorAll('.sortable tbody th')].map((cell) => cell.textContent)"
SPLIT = "getComputedStyle(document.querySelector('.stage')).getPropertyValue('--split')"
BOX = "(({{ left, top, width, height }}) => [left, top, width, height])({}.getBoundingClientRect())"
STAGE = BOX.format("document.querySelector('.stage')")
BUTTON = "document.querySelectorAll('.sortable thead button')"


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("browser") / "net.json"


@pytest.fixture(scope="module")
def browser(log):
    with Browser(find_browser(), log) as browser:
        yield browser
    assert not visited(log)


def visited(log: Path) -> set[str]:
    """Returns the hosts that pages have asked for, by the browser's network log.

    What the browser asks for by itself has "not an origin" as initiator, or none; it is told that no host exists.
    """
    events = json.loads(log.read_text("utf-8", "replace"))["events"]
    starts = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return {urlsplit(start["url"]).netloc for start in starts if start["initiator"] != "not an origin"} - {""}


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reports")
    evaluations = {
        "sr": sr_evaluation(count=9, failed=1, with_pictures=True),
        "seg": seg_evaluation(count=8),
        "hostile": sr_evaluation(HOSTILE, with_pictures=True, title=HOSTILE[0]),
    }
    for name, evaluation in evaluations.items():
        write_report(folder / f"{name}.html", evaluation)
    (folder / "training.html").write_text(to_page(training()))
    return {path.stem: path.as_uri() for path in folder.iterdir()}


@pytest.fixture
def opened(browser, reports):
    """Opens a report at the top; afterwards nothing may have been complained about or asked for."""

    def open_report(name: str, **options) -> Browser:
        browser.open(reports[name], **options)
        browser.run("document.documentElement.style.scrollBehavior = 'auto'")
        return browser

    browser.allow_scripts(True)
    yield open_report
    assert not browser.complaints()
    assert all(url in reports.values() for url in browser.requests())


def test_a_page_that_asks_a_host_is_caught(tmp_path):
    (tmp_path / "page.html").write_text("<img src='http://example.invalid/a.png'><script>console.error('x')</script>")
    with Browser(find_browser(), tmp_path / "net.json") as browser:
        browser.open((tmp_path / "page.html").as_uri())
        assert "http://example.invalid/a.png" in browser.requests()
        assert browser.complaints()
    assert visited(tmp_path / "net.json") == {"example.invalid"}


def shot(browser: Browser, folder: Path, name: str = "shot.png") -> np.ndarray:
    browser.screenshot(folder / name)
    with Image.open(folder / name) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["sr", "seg", "hostile", "training"])
@pytest.mark.parametrize("scripts", [True, False])
def test_a_page_shows_itself_with_and_without_scripts(opened, browser, tmp_path, name, scripts):
    browser.allow_scripts(scripts)
    opened(name)
    assert len(np.unique(shot(browser, tmp_path).reshape(-1, 3), axis=0)) > 500  # far from blank
    assert browser.run("document.documentElement.classList.contains('js')") is scripts
    assert (
        browser.run(
            "[...document.images].filter((i) => i.loading !== 'lazy' && !(i.complete && i.naturalWidth)).length"
        )
        == 0
    )


def test_without_scripts_all_pictures_stand_side_by_side(opened, browser):
    browser.allow_scripts(False)
    opened("sr")
    seen = "[...document.querySelectorAll('.card:first-child .stage figure')].filter((f) => f.offsetWidth > 100).length"
    assert browser.run(seen) == 4
    assert browser.run("document.querySelector('.controls').offsetHeight") == 0
    assert browser.run(ORDER) == [f"img_{k:03d}.png" for k in reversed(range(9))]


def test_a_click_sorts_the_table_and_a_second_one_turns_it_round(opened):
    browser = opened("sr")
    for expected in (sorted, lambda names: sorted(names, reverse=True)):
        browser.run(f"{BUTTON}[1].scrollIntoView()")
        x, y, *_ = browser.run(BOX.format(f"{BUTTON}[1]"))
        browser.press(x + 4, y + 4)
        names = browser.run(ORDER)
        assert names == expected(names)
    assert browser.run("document.querySelector('.sortable [aria-sort]').getAttribute('aria-sort')") == "descending"
    assert browser.run("document.querySelectorAll('.sortable [aria-sort]').length") == 1


def test_the_keyboard_sorts_numbers_as_numbers(opened):
    browser = opened("sr")
    browser.run(f"{BUTTON}[2].focus()")
    browser.key("Enter", 13, "\r")  # the table was rising by PSNR, so now it falls
    assert browser.run(ORDER) == [f"img_{k:03d}.png" for k in range(9)]
    browser.run(f"{BUTTON}[0].focus()")
    browser.key("Enter", 13, "\r")
    browser.key("Enter", 13, "\r")
    assert browser.run(ORDER) == [f"img_{k:03d}.png" for k in reversed(range(9))]


def test_the_divide_follows_the_pointer_even_outside_the_picture(opened):
    browser = opened("sr")
    browser.run("document.querySelector('.stage').scrollIntoView()")
    left, top, width, height = browser.run(STAGE)
    browser.press(left + width / 2, top + height / 2, to=(left + width / 4, top + height / 2))
    assert float(browser.run(SPLIT).rstrip("%")) == pytest.approx(25, abs=1)
    browser.press(left + width / 4, top + height / 2, to=(left + 2 * width, top + height / 2))
    assert browser.run(SPLIT) == "100%"
    browser.press(left + 1, top + height / 2)
    assert float(browser.run(SPLIT).rstrip("%")) == pytest.approx(0, abs=1)


def test_the_divide_follows_the_keyboard(opened):
    browser = opened("sr")
    browser.run("document.querySelector('.compare input').focus()")
    browser.key("Home", 36)
    assert browser.run(SPLIT) == "0%"
    browser.key("End", 35)
    assert browser.run(SPLIT) == "100%"
    browser.key("ArrowLeft", 37)
    assert 0 < float(browser.run(SPLIT).rstrip("%")) < 100


def test_the_divide_shows_the_left_picture_left_of_it_and_the_right_one_right(opened, browser, tmp_path):
    opened("sr")
    choose = (
        "(() => {{ const s = document.querySelector('{}'); s.value = '{}'; s.dispatchEvent(new Event('change')); }})()"
    )
    browser.run(choose.format(".left", "hr"))
    browser.run(choose.format(".right", "sr"))
    browser.run("document.querySelector('[value=one]').click()")
    browser.run("document.querySelector('.stage').scrollIntoView()")
    left, top, width, height = (round(value) for value in browser.run(STAGE))
    assert (width, height) == (128, 96)
    pixels = shot(browser, tmp_path)[top : top + height, left : left + width].astype(int)
    pictures = sr_pictures(8)  # the worst
    inside = np.s_[72:92]  # below labels and handle
    np.testing.assert_allclose(pixels[inside, 8:60], pictures["hr"][inside, 8:60], atol=2)
    np.testing.assert_allclose(pixels[inside, 70:120], pictures["sr"][inside, 70:120], atol=2)


def test_one_picture_pixel_is_one_screen_pixel_on_a_dense_screen_too(opened):
    browser = opened("sr", ratio=2)
    browser.run("document.querySelector('[value=one]').click()")
    assert browser.run(STAGE)[2:] == [64, 48]


def test_single_pixels_can_be_shown(opened):
    browser = opened("sr")
    style = "getComputedStyle(document.querySelector('[data-key=sr] img')).imageRendering"
    assert browser.run(style) == "auto"
    browser.run("document.querySelector('.pixelated').click()")
    assert browser.run(style) == "pixelated"


@pytest.mark.parametrize("name", ["sr", "seg", "hostile", "training"])
@pytest.mark.parametrize("scripts", [True, False])
def test_a_phone_never_scrolls_the_page_sideways(opened, browser, name, scripts):
    browser.allow_scripts(scripts)
    opened(name, width=360, height=740)
    assert browser.run("document.documentElement.scrollWidth") == 360


def test_the_page_follows_dark_and_light(opened, browser, tmp_path):
    opened("sr")
    light = shot(browser, tmp_path)[2, 2]
    opened("sr", dark=True)
    dark = shot(browser, tmp_path)[2, 2]
    assert light.min() > 240
    assert dark.max() < 40


def test_the_curves_of_a_training_run_are_seen(opened, browser, tmp_path):
    opened("training")
    boxes = browser.run("[...document.querySelectorAll('#curves .chart')].map((c) => [c.clientWidth, c.clientHeight])")
    assert len(boxes) == 3
    assert all(width > 300 and height > 180 for width, height in boxes)
    browser.run("document.querySelector('#curves').scrollIntoView()")
    left, top, width, height = map(round, browser.run(BOX.format("document.querySelector('#curves .chart')")))
    chart = shot(browser, tmp_path)[max(0, top) : top + height, left : left + width].astype(int)
    blue = (chart[..., 2] - chart[..., 0] > 80).any(axis=0)  # the curve, in each column of pixels between the axes
    assert blue[int(0.2 * width) : int(0.9 * width)].mean() > 0.95


CONTRAST = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => sum + share * linear(c[i] / 255), 0);
  const over = (under, [r, g, b, a = 1]) => [r, g, b].map((v, i) => a * v + (1 - a) * under[i]);
  const ground = (element) => {
    const own = numbers(getComputedStyle(element).backgroundColor);
    return over(element.parentElement ? ground(element.parentElement) : [255, 255, 255], own);
  };
  const low = [];
  for (const element of document.querySelectorAll("main *, header *")) {
    const speaks = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!speaks || element.closest("svg, .stage, select")) continue;
    const pair = [luminance(numbers(getComputedStyle(element).color)), luminance(ground(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) low.push([element.tagName, element.className, element.textContent.slice(0, 20), ratio]);
  }
  return low;
})()
"""


@pytest.mark.parametrize("name", ["sr", "seg", "training"])
@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground_as_wcag_asks(opened, name, dark):
    assert opened(name, dark=dark).run(CONTRAST) == []


def test_the_readmes_pictures_are_taken_light_and_dark(browser, reports, tmp_path):
    browser.allow_scripts(True)
    report = Path(url2pathname(urlsplit(reports["sr"]).path))
    for dark in (False, True):
        take(browser, report, tmp_path / "picture.webp", dark=dark)
        with Image.open(tmp_path / "picture.webp") as picture:
            assert picture.size == (1180, 1330)
            assert bool(np.asarray(picture)[2, 2].max() < 40) is dark

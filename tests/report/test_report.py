from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from densekit.errors import ConfigError
from densekit.files import printable
from densekit.report import Row, check_path, write_report
from densekit.report.markdown import escape, to_markdown
from densekit.report.record import to_json
from tests.report.page import parse
from tests.report.sample import HOSTILE, seg_evaluation, sr_evaluation
from tools import make_report_picture


def rendered(markdown: str):
    return parse(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


@pytest.mark.parametrize("suffix", [".html", ".md", ".json", ".HTML"])
def test_the_suffix_chooses_the_kind_and_equal_input_gives_equal_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        write_report(tmp_path / f"{name}{suffix}", sr_evaluation(count=2, failed=1))
    text = (tmp_path / f"a{suffix}").read_bytes()
    assert text == (tmp_path / f"b{suffix}").read_bytes()
    assert text.startswith({".html": b"<!DOCTYPE html>", ".md": b"# ", ".json": b"{"}[suffix.lower()])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("report.pdf", "report.pdf: no report has the suffix '.pdf'; expected one of .html .md .json"),
        ("report", "report: no report has the suffix ''; expected one of .html .md .json"),
        ("none/a\x1b.html", "none/a\\x1b.html: the folder none is missing; create it first"),
    ],
)
def test_a_path_that_cannot_be_is_refused_before_the_work(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_path(name)
    assert str(caught.value) == message
    with pytest.raises(ConfigError):
        write_report(name, sr_evaluation(count=1))


def test_a_path_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(ConfigError, match=r"a\.json: cannot be written \(.+\); choose a folder that you may write to$"):
        write_report(tmp_path / "a.json", sr_evaluation(count=1))


def test_markdown_is_a_table_of_pictures_in_their_order_with_the_protocol_beneath():
    assert (
        to_markdown(sr_evaluation(count=2, failed=1))
        == """\
# rdn-tiny-x2 on noise

**29.50 dB** PSNR, mean of 2 of 3 pictures, protocol rdn-y.

| picture | PSNR (dB) | SSIM |
|---|--:|--:|
| img\\_000.png | 30.00 | 0.9000 |
| img\\_001.png | 29.00 | 0.8990 |
| **mean** | **29.50** | **0.8900** |

1 of 3 failed and left out:

- broken\\_0.png: truncated PNG; expected a whole file

- protocol: rdn-y
- resize: benchmark
- command: densekit sr eval

config:

    a: 1
    b: 2
"""
    )


def test_markdown_of_a_segmentation_has_its_classes():
    page = rendered(to_markdown(seg_evaluation()))
    tables = [
        [[cell.text for cell in row.find() if cell.name in ("th", "td")] for row in t.find("tr")]
        for t in page.find("table")
    ]
    assert tables[0][-1] == ["all", "0.5500"]
    assert tables[1] == [["figure", "value"], ["ECE", "0.0200"]]
    assert tables[2][-1] == ["<b>pole</b>", "–", "–"]


@given(st.text(st.characters(), min_size=1) | st.sampled_from(HOSTILE))
def test_any_name_is_one_cell_of_plain_text(name):
    page = rendered(to_markdown(sr_evaluation([name, "b.png"], title=name)))
    (table,) = page.find("table")
    rows = [row.find("td") for row in table.find("tr")[1:]]
    assert [len(row) for row in rows] == [3, 3, 3]
    assert rows[0][0].text == printable(name).strip(" ")
    assert not rows[0][0].find()
    assert page.find("h1")[0].text == printable(name).strip(" ")


@given(st.text(st.characters(), min_size=1))
def test_escaped_text_is_plain_at_the_start_of_a_line_too(text):
    page = rendered("- x: " + escape(text) + "\n\n" + escape("#" + text) + "\n")
    assert page.find("p")[-1].text == ("#" + printable(text)).rstrip(" ")
    assert [element.name for element in page.find()] == ["ul", "li", "p"]


def test_links_are_not_made_of_names():
    assert "http://" not in escape("http://example.com")
    assert "www." not in escape("www.example.com")


def test_json_holds_everything_but_the_pictures():
    evaluation = seg_evaluation()
    evaluation.rows.append(Row("broken.png", {}, "unreadable"))
    record = json.loads(to_json(evaluation))
    assert (record["measured"], record["total"], record["complete"]) == (3, 4, False)
    assert record["rows"][0] == {"name": "0.png", "figures": {"miou": 0.5}, "error": None}
    assert record["rows"][3] == {"name": "broken.png", "figures": {}, "error": "unreadable"}
    assert record["matrix"] == [[90, 10, 0], [5, 45, 0], [0, 0, 0]]
    assert record["per_class"]["dice"] == [0.923, 0.857, None]
    assert record["curves"]["calibration"] == [[0.5, 0.4], [0.9, 0.85]]
    assert {"title", "task", "metric", "summary", "conditions", "classes", "palette"} <= record.keys()


def test_json_is_strict_numbers_that_are_none_become_null_and_names_text():
    rows = [Row("bad\udcff", {"a": math.nan, "b": math.inf, "c": np.float32(0.5), "d": np.int64(3), "e": 7})]
    text = to_json(sr_evaluation(rows=rows, curves={"loss": [(0.0, math.nan)]}))
    text.encode()

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads(text, parse_constant=refuse)
    assert record["rows"][0]["figures"] == {"a": None, "b": None, "c": 0.5, "d": 3, "e": 7}
    assert record["rows"][0]["name"] == "bad\\udcff"
    assert record["curves"] == {"loss": [[0.0, None]]}


@pytest.mark.parametrize(
    "changes",
    [{"task": "det"}, {"matrix": np.zeros((2, 2), np.int64)}, {"per_class": {"iou": [1.0]}}],
)
def test_an_evaluation_that_contradicts_itself_is_a_fault_of_ours(changes):
    with pytest.raises(AssertionError):
        seg_evaluation(**changes)


def test_the_readmes_picture_of_a_report_needs_a_browser_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(make_report_picture, "find_browser", lambda: None)
    assert make_report_picture.main() == 2
    assert capsys.readouterr().err == (
        "error: found no Chromium or Chrome; install one, or name it in $DENSEKIT_CHROMIUM\n"
    )

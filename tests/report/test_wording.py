from __future__ import annotations

import math

import numpy as np
import pytest

from densekit.report import Row
from densekit.report import wording as w
from tests.report.sample import seg_evaluation, sr_evaluation


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("psnr", 31.456, "31.46"),
        ("psnr@rgb", 31.0, "31.00"),
        ("psnr", math.inf, "∞"),
        ("psnr", -math.inf, "−∞"),
        ("ssim", 0.88456, "0.8846"),
        ("ssim", 1.0, "1.0000"),
        ("niqe", 4.56789, "4.568"),
        ("valid_pixels", 1234567, "1,234,567"),
        ("classes_in_mean", 1, "1"),
        ("pixels", np.int64(4096), "4,096"),
        ("iou", np.float32(0.5), "0.5000"),
        ("iou", None, "–"),
        ("iou", math.nan, "–"),
    ],
)
def test_a_figure_is_written_as_its_kind_is(key, value, text):
    assert w.show(key, value) == text


@pytest.mark.parametrize(
    ("key", "label", "head"),
    [
        ("psnr", "PSNR", "PSNR (dB)"),
        ("psnr@rgb", "PSNR by rgb", "PSNR by rgb (dB)"),
        ("ms_ssim", "MS SSIM", "MS SSIM"),
        ("frequency_weighted_iou", "frequency weighted IoU", "frequency weighted IoU"),
        ("", "", ""),
    ],
)
def test_a_figure_has_a_name_to_read(key, label, head):
    assert (w.label(key), w.head(key)) == (label, head)


def test_ranks_are_worst_first_by_the_headline_and_stable():
    rows = [
        Row("a", {"psnr": 2.0}),
        Row("b", {"psnr": 1.0}),
        Row("c", {}),
        Row("d", {"psnr": 1.0}),
        Row("e", {}, "bad"),
    ]
    assert w.rank(sr_evaluation(rows=rows)) == [1, 3, 0, 2]
    assert w.rank(sr_evaluation(rows=[Row("a", {"lpips": 0.1}), Row("b", {"lpips": 0.2})], metric="lpips")) == [1, 0]
    assert not w.smaller_is_better("lossless_psnr")


def test_a_headline_says_what_it_stands_for():
    assert w.headline(sr_evaluation(count=3)) == "29.00 dB"
    assert w.headline(sr_evaluation(summary={})) == "–"
    assert w.basis(sr_evaluation(count=1)) == "mean of 1 of 1 picture"
    assert w.basis(sr_evaluation(count=4, failed=1)) == "mean of 4 of 5 pictures"
    assert w.basis(seg_evaluation()) == "all pixels of 3 of 3 pictures"
    assert w.protocol(sr_evaluation(conditions={})) == "not stated"


def test_columns_begin_with_the_headline_and_hold_every_figure():
    rows = [Row("a", {"ssim": 1.0}), Row("b", {"lpips": 1.0, "psnr": 1.0})]
    assert w.columns(sr_evaluation(rows=rows)) == ["psnr", "ssim", "lpips"]

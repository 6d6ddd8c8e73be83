"""The program that measures the degradation."""

from __future__ import annotations

import numpy as np
import pytest

from densekit.image import Picture, write_image
from tests.training_data import make_picture
from tools import bench_degradation


def test_a_row_says_speed_and_differences_and_both_codecs_are_measured(tmp_path, capsys):
    for i in range(2):
        write_image(tmp_path / f"{i}.png", Picture(make_picture(260, 300, i)))
    bench_degradation.main([str(tmp_path), "--crops", "3"])
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("| densekit | ")]
    assert int(row.split(" | ")[1]) > 0
    assert [line.split(":")[0] for line in lines if line.startswith("JPEG")] == [
        f"JPEG {quality}, {name}" for quality in (30, 60, 90) for name in ("ours", "kornia")
    ]


def test_pictures_that_are_too_small_are_refused(tmp_path):
    write_image(tmp_path / "a.png", Picture(np.zeros((40, 300, 3), np.uint8)))
    with pytest.raises(SystemExit, match="no picture is 256x256"):
        bench_degradation.main([str(tmp_path)])

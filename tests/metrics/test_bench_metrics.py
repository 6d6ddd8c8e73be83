"""The program that measures figures beside their peers, and the speeds it is there to keep."""

from __future__ import annotations

import cv2
import pytest

from tools import bench_metrics


def test_the_table_names_every_way_with_a_speed_and_a_ratio_to_ours(capsys, monkeypatch):
    monkeypatch.setattr(bench_metrics, "peers", lambda *masks: list(all_peers(*masks))[:3])
    bench_metrics.main(["--pictures", "1", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert printed.count("| figure | Mpx/s | time, ours = 1 |") == 2  # 11 and 19 classes
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| densekit")]
    assert len(rows) == 8
    assert all(float(row[1]) > 0 for row in rows)
    assert rows[0][2] == "1.0 |"


all_peers = bench_metrics.peers


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [11, 19])
def test_counting_takes_at_most_half_the_time_of_a_masked_bincount(num_classes):
    cv2.setNumThreads(1)
    masks = bench_metrics.draw_masks(num_classes, 8)
    ways = dict(list(bench_metrics.peers(*masks, num_classes))[:2])
    ours, usual = bench_metrics.measure(ways, rounds=9).values()
    assert usual / ours > 2


@pytest.mark.slow
def test_boundary_iou_takes_less_time_than_the_erosions_of_each_class_alone():
    cv2.setNumThreads(1)
    prediction, target = bench_metrics.draw_masks(11, 4)

    def erosions():
        for labels in (*prediction, *target):
            for number in range(11):
                cv2.erode((labels == number).astype("uint8"), None, iterations=12)
        return 0.0

    ways = {**dict(bench_metrics.own(prediction, target, 11)), "erosions": erosions}
    ours, _, _, usual = bench_metrics.measure(ways, rounds=5).values()
    assert usual / ours > 1.5

from __future__ import annotations

import torch

from tools import bench_memory


def test_each_policy_has_a_row_with_what_it_keeps_has_at_once_and_takes(monkeypatch, capsys):
    monkeypatch.setattr(bench_memory, "CASES", [("densenet_cifar", (2, 3, 16, 16)), ("rdn_a", (1, 3, 8, 8))])
    monkeypatch.setattr("sys.argv", ["bench_memory", "--rounds", "1"])
    threads = torch.get_num_threads()
    try:
        bench_memory.main()
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith("one thread")] == [
        "densenet_cifar, 2x3x16x16, float32, one thread",
        "rdn_a, 1x3x8x8, float32, one thread",
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows] == 2 * ["", "speed", "balanced", "lean", "min"]
    kept, at_once = ([float(row[column]) for row in rows[1:5]] for column in (1, 2))
    assert kept == sorted(kept, reverse=True)
    assert all(most >= least for least, most in zip(kept, at_once, strict=True))

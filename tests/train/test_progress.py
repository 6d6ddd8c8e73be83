from __future__ import annotations

import re

import pytest

from densekit.memory import peak_memory
from densekit.train.progress import Watch


def test_a_terminal_shows_steps_rate_loss_and_memory(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with Watch(10, 2) as watch:
        watch.step(6, "loss 0.5000  1.25 GiB")
        watch.step(7)  # keeps the note
        watch.say("step 7: psnr 30.0000")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    last = shown.splitlines()[-1]
    assert re.search(r"7/10 .*\d\.\d\d steps/s loss 0\.5000  1\.25 GiB", last), last
    assert "step 7: psnr 30.0000" in shown


def test_elsewhere_each_tenth_is_a_line_with_the_last_note(capsys):
    with Watch(40, 0) as watch:
        for step in range(1, 41):
            watch.step(step, f"loss {step}" if step % 10 == 0 else "")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/40" for step in range(4, 41, 4)]
    assert lines[-1].endswith("loss 40")
    assert lines[4].endswith("loss 20")
    assert all("steps/s" in line and "min left" in line for line in lines)


def test_peak_memory_counts_bytes():
    before = peak_memory("cpu")
    block = bytearray(300 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory("cpu") >= max(before, 300 << 20)


@pytest.mark.gpu
def test_peak_memory_of_a_gpu_is_that_of_its_tensors():
    import torch

    torch.cuda.reset_peak_memory_stats()
    torch.empty(100 << 20, dtype=torch.uint8, device="cuda")
    assert peak_memory("cuda") >= 100 << 20

from __future__ import annotations

from pathlib import Path

import pytest

from densekit.cards import read_card
from tests.training_data import write_masked


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def masked():
    return write_masked(Path("seg"))


def test_a_recalibrated_checkpoint_says_so_and_is_the_same_each_time(run, masked, tiny_seg):
    before = tiny_seg.read_bytes()
    result = run("bn", "recalibrate", tiny_seg, "--data", masked / "images", "-o", "new.safetensors")
    assert (result.code, result.out) == (0, ["new.safetensors"])
    assert result.err[-1] == "bn_mode recalibrated, 3 pictures"
    card = read_card("new.safetensors")
    assert card.bn_mode == "recalibrated"
    assert card.data == "batch norm statistics of 3 pictures in images, batches of 8"
    run("bn", "recalibrate", tiny_seg, "--data", masked / "images", "-o", "again.safetensors")
    assert Path("again.safetensors").read_bytes() == Path("new.safetensors").read_bytes()
    assert tiny_seg.read_bytes() == before
    line = run("seg", "eval", "-m", "new.safetensors", "--images", masked / "images", "--masks", masked / "masks").out[
        0
    ]
    assert "bn recalibrated" in line


def test_several_folders_count_together(run, masked, tiny_seg):
    other = write_masked(Path("more"), 2, seed=7)
    words = ["--data", masked / "images", "--data", other / "images"]
    assert run("bn", "recalibrate", tiny_seg, *words, "-o", "new.safetensors").err[-1].endswith(", 5 pictures")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["SEG", "--data", "seg/images", "-o", "new.pth"], 2, "-o new.pth: expected a .safetensors file in a folder"),
        (["SEG", "--data", "seg/images", "-o", "gone/new.safetensors"], 2, "-o gone/new.safetensors: expected a"),
        (
            ["copy.safetensors", "--data", "seg/images", "-o", "copy.safetensors"],
            2,
            "-o copy.safetensors is the",
        ),
        (
            ["SEG", "--data", "seg/images", "-o", "copy.safetensors"],
            2,
            "-o copy.safetensors already exists",
        ),
        (["SEG", "--data", "gone", "-o", "new.safetensors"], 3, "gone: no such folder"),
        (["SR", "--data", "seg/images", "-o", "new.safetensors"], 2, "rdn has no batch norm, so it has no statistics"),
        (["SEG", "--data", "bad", "-o", "new.safetensors"], 3, "bad/0.png: not a PNG"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(run, masked, tiny_seg, tiny_sr, words, code, message):
    Path("copy.safetensors").write_bytes(tiny_seg.read_bytes())
    Path("bad").mkdir()
    Path("bad/0.png").write_bytes(b"no picture")
    names = {"SEG": tiny_seg, "SR": tiny_sr}
    result = run("bn", "recalibrate", *(names.get(word, word) for word in words))
    assert (result.code, result.out) == (code, [])
    assert result.err[-1].startswith(f"error: {message}")
    assert not Path("new.safetensors").exists()

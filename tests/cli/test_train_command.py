from __future__ import annotations

import importlib.util
import re
import signal
import time
from pathlib import Path

import pytest

import densekit.train
from densekit.cards import read_card
from densekit.config import load_config, parse_config

SR = """
task: sr
model: {name: rdn, scale: 2, num_features: 8, num_blocks: 1, num_layers: 1, growth_rate: 8}
data: {train: photos, val: photos}
train: {total_steps: 2, batch_size: 2, crop_size: 8, eval_every: 2, checkpoint_every: 1, log_every: 1}
"""
SEG = """
task: seg
model: {name: fc_densenet, num_classes: 2, num_init_features: 8, growth_rate: 4, num_pools: 2, num_layers: 1}
data: {train: street, val: street, classes: [road, sky], augment: none}
train: {total_steps: 1, batch_size: 1, crop_size: 16}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, picture):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(SR)
    Path("street.yaml").write_text(SEG)
    for index in range(2):
        picture(Path(f"photos/{index}.png"), (48, 40))
        picture(Path(f"street/images/{index}.png"), (32, 32))
    for index in range(2):
        mask = picture(Path(f"street/masks/{index}.png"), (32, 32), "L")
        halve(mask)


def halve(mask):
    """Turns a grey picture into class numbers 0 and 1."""
    from densekit.image import read_mask, write_mask

    write_mask(mask, read_mask(mask) // 128)


def test_training_prints_the_weights_and_keeps_the_figures_to_stderr(run):
    result = run("sr", "train", "tiny.yaml", "train.seed=3", "--device", "cpu")
    assert result.code == 0, result.err
    assert result.out == ["runs/tiny/last.safetensors"]
    assert result.err[0].startswith("densekit 0.1.0  rdn (sr)  cpu, ")
    assert result.err[0].endswith(" threads, fp32  runs/tiny")
    assert result.err[-2] == "report: runs/tiny/report.html"
    assert result.err[-1].startswith("psnr ")
    assert Path("runs/tiny/report.html").read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in Path("runs/tiny/samples/step-00000002").iterdir()) == ["0.webp", "1.webp"]
    assert read_card("runs/tiny/last.safetensors").step == 2
    again = run("sr", "train", "tiny.yaml", "train.seed=3")
    assert (again.code, again.out) == (2, [])
    assert again.err[-1] == "error: runs/tiny already holds a run at step 2; add --resume or choose another --run"
    assert run("sr", "train", "tiny.yaml", "train.seed=3", "--resume").out == result.out


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_done(run, monkeypatch, more):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    result = run("sr", "train", "tiny.yaml", "train.trackers=[wandb]", *more)
    assert result.code == 2
    assert result.err == [
        "error: train.trackers: wandb is not installed; run: pip install 'densekit[wandb]', or leave it out"
    ]
    assert not Path("runs").exists()


def test_a_memory_budget_says_once_how_it_is_spent_and_is_not_part_of_the_weights(run):
    result = run("seg", "train", "street.yaml", "model.memory=130KiB", "train.total_steps=2", "--device", "cpu")
    assert result.code == 0, result.err
    said = [line for line in result.err if line.startswith("memory=130KiB: ")]
    assert len(said) == 1
    assert re.search(r" (balanced|lean|min).*: \d+\.\d MiB of activations expected at 1x3x16x16$", said[0])
    assert "memory" not in read_card("runs/street/last.safetensors").arguments


def test_a_memory_budget_that_nothing_fits_says_what_would(run):
    result = run("seg", "train", "street.yaml", "model.memory=10kB", "--device", "cpu")
    assert (result.code, result.out) == (2, [])
    assert result.err[-1].startswith("error: memory='10kB': even 'min' keeps ")
    assert result.err[-1].endswith("raise the budget, or lower the batch (train.batch_size) or crop (train.crop_size)")


def test_segmentation_trains_with_the_same_words(run):
    result = run("seg", "train", "street.yaml", "--run", "first", "--device", "cpu")
    assert result.code == 0, result.err
    assert result.out == ["first/last.safetensors"]
    assert [line.split()[0] for line in result.err[-2:]] == ["miou", "accuracy"]
    assert read_card("first/last.safetensors").classes == ("road", "sky")


@pytest.mark.parametrize(
    ("args", "code", "lines"),
    [
        (
            ["tiny.yaml", "train.batch_size=-4", "optim.learning_rte=1"],
            2,
            [
                "error: optim.learning_rte: unknown key; did you mean 'learning_rate'? (command line)",
                "error: train.batch_size=-4: must be 1 or more (command line)",
            ],
        ),
        (["street.yaml"], 2, ["error: street.yaml: its task is seg; use densekit seg train"]),
        (["sr/rdn_tinyx2"], 2, ["error: no config named 'sr/rdn_tinyx2'; did you mean 'sr/rdn_tiny_x2'?"]),
        (["tiny.yaml", "--device", "warp"], 2, ["error: device 'warp': expected auto, cpu"]),
        (["tiny.yaml", "data.train=gone"], 3, ["error: gone: no such folder"]),
        (["tiny.yaml", "--run", "tiny.yaml/x"], 2, ["error: tiny.yaml/x: cannot be made or written: Not a directory"]),
    ],
)
def test_what_cannot_be_trained_is_named_before_anything_is_written(run, args, code, lines):
    result = run("sr", "train", *args)
    assert (result.code, result.out) == (code, [])
    errors = [line for line in result.err if line.startswith("error: ")]
    assert len(errors) == len(lines)
    for found, expected in zip(errors, lines, strict=True):
        assert found.startswith(expected)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            4,
            "error: a batch of 2 crops of 8 pixels does not",
        ),
        (MemoryError(), 4, "error: a batch of 2 crops of 8 pixels does not fit cpu memory; lower train.batch_size"),
        (RuntimeError("other"), 1, "error: unexpected RuntimeError: other; run again with --debug"),
        (OSError(28, "No space left on device", "runs/tiny/a"), 1, "error: runs/tiny/a: No space left on device"),
    ],
)
def test_what_stops_a_run_has_its_code(run, monkeypatch, error, code, line):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(densekit.train, "train", fail)
    result = run("sr", "train", "tiny.yaml", "--device", "cpu")
    assert (result.code, result.out) == (code, [])
    assert result.err[-1].startswith(line)


def test_a_stopped_run_saves_says_how_to_go_on_and_does(start):
    process = start("sr", "train", "tiny.yaml", "train.total_steps=100000", "data.val=[]")
    log = Path("runs/tiny/metrics.jsonl")
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=250)
    assert (process.returncode, out) == (143, b"")
    last = err.decode().splitlines()[-1]
    assert last.startswith("error: interrupted at step ")
    assert last.endswith("saved in runs/tiny/checkpoints; continue with --resume")
    assert list(Path("runs/tiny/checkpoints").glob("state-*.dk"))


def test_the_config_is_printed_with_the_origin_of_each_value(run):
    result = run("sr", "train", "tiny.yaml", "train.seed=3", "--print-config")
    assert (result.code, result.err) == (0, [])
    assert "  scale: 2  # tiny.yaml:3" in result.out
    assert "  seed: 3  # command line" in result.out
    assert "  keep: 2  # default" in result.out
    assert parse_config("\n".join(result.out)) == load_config("tiny.yaml", ["train.seed=3"])
    assert not Path("runs").exists()


def test_a_dry_run_says_what_a_run_would_cost_and_writes_nothing(run):
    Path("held").mkdir()
    Path("photos/1.png").rename("held/1.png")
    before = sorted(Path().rglob("*"))
    result = run("sr", "train", "tiny.yaml", "data.val=held", "--dry-run", "--device", "cpu")
    assert result.code == 0, result.err
    assert "  total_steps: 2  # tiny.yaml:5" in result.out
    assert result.err[0].startswith("densekit 0.1.0  rdn (sr)  cpu, ")
    assert [line.split()[0] for line in result.err[-5:]] == ["rdn:", "data:", "2", "peak", "2"]
    assert sorted(Path().rglob("*")) == before


def test_a_dry_run_ends_where_the_data_has_errors(run):
    result = run("sr", "train", "tiny.yaml", "--dry-run", "--device", "cpu")
    assert result.code == 3
    assert any("leak" in line for line in result.err)
    assert result.err[-1] == "error: the data is faulty, 2 times; mend it (densekit sr check tells all)"


def test_a_dry_run_finds_what_a_run_would(run):
    result = run("sr", "train", "tiny.yaml", "data.train=gone", "--dry-run")
    assert (result.code, result.err[-1][:28]) == (3, "error: the data is faulty, 1")
    assert any("gone" in line and "no such folder" in line for line in result.err)
    result = run("sr", "train", "tiny.yaml", "optim.rates={stem*: 0.1}", "data.val=[]", "--dry-run", "--device", "cpu")
    assert result.code == 2
    assert result.err[-1].startswith("error: optim.rates: 'stem*' fits no parameter; their names go from sfe1.weight")

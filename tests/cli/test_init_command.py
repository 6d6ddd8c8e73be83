from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import densekit.train.propose
from densekit.config import load_config
from densekit.image import read_mask
from densekit.train.sizes import Size
from tests.training_data import write_masked, write_pictures

TINY = {
    "seg": {"name": "fc_densenet", "num_init_features": 4, "growth_rate": 4, "num_pools": 2, "num_layers": 1},
    "sr": {"name": "rdn", "num_features": 4, "num_blocks": 1, "num_layers": 1, "growth_rate": 4},
}
LONG = ("--minutes", "600", "--device", "cpu")  # enough on a busy machine


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Networks of a few milliseconds, and three steps of each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(densekit.train.propose, "SIZES", {task: (Size(m, 32, 2),) for task, m in TINY.items()})
    monkeypatch.setattr(densekit.train.propose, "REHEARSED_STEPS", 3)
    write_masked(tmp_path / "cells", count=8, classes=2)
    write_pictures(tmp_path / "photos", 5, height=70, width=80)


def test_three_commands_lead_from_a_folder_to_overlays(run):
    made = run("seg", "init", "cells/", "-o", "cells.yaml", *LONG)
    assert (made.code, made.out) == (0, ["cells.yaml"]), made.err
    assert made.err[0] == "cells/: 8 pictures with masks, 48x40"
    assert made.err[1].startswith("classes: background ")
    assert made.err[2] == "validation: 20% of them, chosen by name"
    assert made.err[3].startswith("network: fc_densenet, ")
    following, then = made.err[-2:]
    assert following == "next: densekit seg train cells.yaml --device cpu"
    assert then == (
        "then: densekit seg predict cells/images -m runs/cells/best.safetensors --overlay -o out/cells/ --device cpu"
    )
    trained = run(*shlex.split(following)[2:], "train.total_steps=4", "optim.warmup_steps=0")
    assert trained.code == 0, trained.err
    predicted = run(*shlex.split(then)[2:])
    assert predicted.code == 0, predicted.err
    assert len(list(Path("out/cells").glob("*_overlay.png"))) == 8


def test_the_config_is_one_that_a_person_can_read_and_train(run):
    assert run("seg", "init", "cells/", *LONG).out == ["cells.yaml"]
    text = Path("cells.yaml").read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert header[0].startswith("# Segmentation of 8 pictures, proposed by densekit ")
    assert header[2].startswith("# Cost: about ")
    assert header[3] == "# Command: densekit seg train cells.yaml --device cpu"
    assert "  num_classes: 1  # one logit tells foreground and background apart" in text
    assert "  val_share: 0.2  # kept from training, chosen by a hash of the name" in text
    assert max(map(len, text.splitlines())) <= 120
    config = load_config("cells.yaml")
    assert config.data.train == ["cells/"]
    dry = run("seg", "train", "cells.yaml", "--dry-run", "--device", "cpu")
    assert dry.code == 0, dry.err
    assert "data: 6 images with masks to train on, 2 to evaluate on" in "\n".join(dry.err)
    assert not Path("runs").exists()


def test_super_resolution_starts_with_the_same_words(run):
    made = run("sr", "init", "photos", "--scale", "2", *LONG)
    assert (made.code, made.out) == (0, ["photos.yaml"]), made.err
    assert made.err[0] == "photos: 5 pictures, 80x70"
    assert made.err[-2:] == [
        "next: densekit sr train photos.yaml --device cpu",
        "then: densekit sr predict photos -m runs/photos/best.safetensors -o out/photos/ --device cpu",
    ]
    assert "  scale: 2  # between low and high resolution" in Path("photos.yaml").read_text()
    dry = run("sr", "train", "photos.yaml", "--dry-run", "--device", "cpu")
    assert dry.code == 0, dry.err


def test_masks_in_colours_get_a_class_map_that_trains(run):
    for path in Path("cells/masks").iterdir():
        Image.fromarray(np.array([[0, 0, 0], [255, 0, 0]], np.uint8)[read_mask(path)]).save(path)
    made = run("seg", "init", "cells", *LONG)
    assert made.code == 0, made.err
    assert any(line.startswith("masks in colours, read by #") for line in made.err)
    assert load_config("cells.yaml").data.class_map.keys() == {"#000000", "#ff0000"}
    trained = run("seg", "train", "cells.yaml", "train.total_steps=2", "optim.warmup_steps=0", "--device", "cpu")
    assert trained.code == 0, trained.err


@pytest.mark.slow
def test_one_picture_is_said_to_have_no_validation(run, tmp_path):
    write_masked(tmp_path / "one", count=1, classes=2)
    made = run("seg", "init", "one", *LONG)
    assert made.code == 0, made.err
    assert made.err[0] == "one: 1 picture with masks, 48x40"
    assert made.err[2].startswith("validation: none, since one picture cannot do both; give others with --val")
    assert " -m runs/one/last.safetensors " in made.err[-1]
    assert "# Expected: unknown, nothing validates." in Path("one.yaml").read_text()
    assert run("seg", "train", "one.yaml", "train.total_steps=2", "optim.warmup_steps=0", "--device", "cpu").code == 0
    assert Path("runs/one/last.safetensors").exists()


@pytest.mark.slow
def test_mixed_sizes_and_warnings_are_told(run, tmp_path):
    write_masked(tmp_path / "more", count=2, height=90, width=64, seed=20)
    picture, copy = (Path(f"cells/images/{number}.png") for number in (0, 1))
    copy.write_bytes(picture.read_bytes())
    made = run("seg", "init", "cells", "more", "-o", "both.yaml", *LONG)
    assert made.code == 0, made.err
    assert any(line.startswith("warning: cells/images/1.png: ") for line in made.err)
    assert "cells, more: 10 pictures with masks, 2 sizes from 48x40 to 64x90" in made.err
    assert load_config("both.yaml").data.train == ["cells", "more"]


def test_an_existing_file_is_refused_before_any_work(run):
    Path("cells.yaml").write_text("mine")
    made = run("seg", "init", "cells", *LONG)
    assert (made.code, made.out) == (2, [])
    assert made.err == ["error: cells.yaml already exists; add --overwrite or choose another -o"]
    assert Path("cells.yaml").read_text() == "mine"
    assert run("seg", "init", "cells", "--overwrite", *LONG).code == 0
    assert load_config("cells.yaml").task == "seg"


def test_faulty_data_is_refused_with_every_fault(run):
    Path("cells/masks/0.png").unlink()
    Path("cells/images/1.png").write_bytes(b"")
    made = run("seg", "init", "cells", *LONG)
    assert (made.code, made.out) == (3, [])
    assert "error no-mask: 1" in made.err
    assert "error empty-file: 1" in made.err
    assert made.err[-1] == "error: the data is faulty, 2 times; mend it first (densekit seg check tells all, too)"
    assert not Path("cells.yaml").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["seg", "init", "gone"], 3, "gone: no such folder; give one that holds pictures"),
        (["seg", "init", "photos"], 3, "photos: holds neither images/ and masks/ nor image/ and mask/; give the"),
        (["sr", "init", "void", "--scale", "2"], 3, "the data is faulty, once; mend it first (densekit sr check"),
        (["seg", "init", "cells", "-o", "cells.json"], 2, "-o cells.json: expected a name that ends with .yaml"),
        (["seg", "init", "cells", "--model", "unet", "--from", "x"], 2, "found --model and --from; a trained model"),
        (["seg", "init", "cells", "--model", "fc_densenet65"], 2, "model 'fc_densenet65': no such architecture; did"),
        (["seg", "init", "cells", "--model", "rdn"], 2, "--model rdn: is for task sr, not seg (densekit models lists"),
        (["seg", "init", "cells", "--from", "rdn-tiny-x2"], 2, "--from rdn-tiny-x2: is for task sr, not seg"),
        (["seg", "init", "cells", "--from", "a/b.safetensors"], 5, "a/b.safetensors: no such file; give"),
        (["seg", "init", "cells", "--minutes", "0.001"], 2, "--minutes 0.001: start-up and evaluation take "),
        (["seg", "init", "cells", "--device", "warp"], 2, "device 'warp': expected auto, cpu, cuda"),
    ],
)
def test_what_cannot_be_proposed_is_one_line(run, args, code, message):
    Path("void").mkdir()
    made = run(*args)
    assert (made.code, made.out) == (code, [])
    assert made.err[-1].startswith(f"error: {message}")
    assert not list(Path().glob("*.yaml"))


def test_masks_of_one_class_are_refused(run):
    for path in Path("cells/masks").iterdir():
        Image.fromarray(read_mask(path) * 0).save(path)
    made = run("seg", "init", "cells")
    assert made.code == 3
    assert made.err[-1] == (
        "error: cells: the masks hold class 0 alone; training needs two classes or more, background among them"
    )


@pytest.mark.slow
def test_options_reach_the_config(run):
    made = run(
        "seg", "init", "cells/images", "cells/masks", "--classes", "glass, cell", "--model", "fc_densenet56", *LONG
    )  # fmt: skip
    assert (made.code, made.out) == (0, ["cells.yaml"]), made.err
    config = load_config("cells.yaml")
    assert (config.data.masks, config.data.classes) == (["cells/masks"], ["glass", "cell"])
    assert (config.model.name, config.train.crop_size) == ("fc_densenet56", 32)

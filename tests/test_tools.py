"""The programs in tools/ and data/ that write something a user will rely on."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import data.bsds400.prepare as bsds400
import data.camvid.prepare as camvid
import data.nuclei.prepare as nuclei
from data.layout import LayoutError, pictures, run
from densekit.checkpoint import load_model, save_model
from densekit.config import load_config
from densekit.errors import ConfigError
from tools import pack_weights
from tools.make_samples import draw_street

OVERRIDES = ["model.num_blocks=1", "model.num_layers=1", "model.num_features=8", "model.growth_rate=8"]


@pytest.fixture
def finished(tmp_path, monkeypatch, tiny_sr):
    """A run folder as training leaves it, and a folder for the weights; Set5 is one of our samples."""
    (tmp_path / "images").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "run").mkdir()
    Image.fromarray(draw_street()).save(tmp_path / "images" / "street.png")
    val = str(tmp_path / "images")
    config = load_config("sr/rdn_tiny_x2", [*OVERRIDES, f"data.val={val}", "train.total_steps=900"])
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    net, card = load_model(tiny_sr)
    metrics = {"psnr": 31.234567, "protocol": "rdn-y", "data": val}
    save_model(tmp_path / "run" / "last.safetensors", net, dataclasses.replace(card, step=900, metrics=metrics))
    monkeypatch.setattr(pack_weights, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setitem(pack_weights.DATASETS, val, pack_weights.DATASETS["data/set5/images"])
    return tmp_path


def test_a_packed_model_is_the_runs_in_half_precision_with_a_full_card(finished):
    pack_weights.pack(finished / "run", "rdn-tiny-x2")
    net, card = load_model(finished / "weights" / "rdn-tiny-x2.safetensors")
    whole, _ = load_model(finished / "run" / "last.safetensors")
    for (name, packed), original in zip(net.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(packed, original, rtol=2**-11, atol=2**-24, msg=name)
    assert card.data == "BSDS500 train and test (400 images), T91 (91 images)"
    assert card.licence == "BSDS500: non-commercial research; T91: none stated"
    assert card.recipe == "sr/rdn_tiny_x2"
    assert card.metrics["psnr"] == 31.2346
    assert 15 < card.metrics["bicubic"] < 40
    assert (card.metrics["protocol"], card.metrics["data"]) == ("rdn-y", "Set5 (5 images)")


def test_an_unfinished_run_is_not_packed(finished):
    path = finished / "run" / "last.safetensors"
    net, card = load_model(path)
    save_model(path, net, dataclasses.replace(card, step=899))
    with pytest.raises(ConfigError, match=r"run: at step 899 of 900; finish it with --resume$"):
        pack_weights.pack(finished / "run", "rdn-tiny-x2")
    assert not list((finished / "weights").iterdir())


def test_a_model_that_makes_all_of_them_too_large_is_not_packed_and_the_old_one_stays(finished, monkeypatch):
    old = finished / "weights" / "rdn-tiny-x2.safetensors"
    old.write_bytes(b"the old one")
    monkeypatch.setattr(pack_weights, "MAX_TOTAL", 1000)
    with pytest.raises(ConfigError, match="larger than 1000 bytes together; not packed"):
        pack_weights.pack(finished / "run", "rdn-tiny-x2")
    assert old.read_bytes() == b"the old one"


def test_a_model_without_a_config_is_not_packed(finished):
    with pytest.raises(ConfigError, match="rdn-huge: no shipped config sr/rdn_huge"):
        pack_weights.pack(finished / "run", "rdn-huge")


def fill(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"pixels")


def test_bsds400_leaves_the_validation_pictures_out(tmp_path, monkeypatch, capsys):
    source = tmp_path / "BSDS500" / "data" / "images"
    fill(source / "train", [f"{i}.jpg" for i in range(200)] + ["Thumbs.db"])
    fill(source / "test", [f"{i}.jpg" for i in range(200, 400)])
    fill(source / "val", [f"{i}.jpg" for i in range(400, 500)])
    monkeypatch.setattr(bsds400, "TARGET", tmp_path / "images")
    bsds400.place(tmp_path)
    assert len(pictures(tmp_path / "images", expected=400)) == 400
    assert capsys.readouterr().out == f"{tmp_path / 'images'}: 400 files\n"


def test_a_second_run_writes_nothing_into_what_a_link_points_to(tmp_path, monkeypatch):
    for split, count in (("train", 367), ("val", 101)):
        fill(tmp_path / "CamVid" / split, [f"{i}.png" for i in range(count)])
        fill(tmp_path / "CamVid" / f"{split}annot", [f"{i}.png" for i in range(count)])
    monkeypatch.setattr(camvid, "TARGET", tmp_path / "camvid")
    (tmp_path / "camvid" / "train").mkdir(parents=True)
    (tmp_path / "camvid" / "train" / "images").symlink_to(tmp_path / "CamVid" / "train")
    for _ in range(2):
        camvid.place(tmp_path / "CamVid")
    assert not any(path.is_symlink() for path in (tmp_path / "CamVid").rglob("*"))
    assert os.path.realpath(tmp_path / "camvid/val/masks/7.png") == str(tmp_path / "CamVid/valannot/7.png")


def test_nuclei_become_one_mask_of_zero_and_one(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a" * 12], "val": []}))
    sample = tmp_path / "stage1_train" / ("a" * 64)
    (sample / "images").mkdir(parents=True)
    (sample / "masks").mkdir()
    Image.fromarray(rng.integers(0, 256, (8, 9, 4), np.uint8)).save(sample / "images" / "a.png")
    one, other = np.zeros((8, 9), np.uint8), np.zeros((8, 9), np.uint8)
    one[:3], other[5:, 2:] = 255, 255
    Image.fromarray(one).save(sample / "masks" / "1.png")
    Image.fromarray(other).save(sample / "masks" / "2.png")
    monkeypatch.setattr(nuclei, "TARGET", tmp_path)
    nuclei.place(tmp_path / "stage1_train")
    with Image.open(tmp_path / "train" / "images" / ("a" * 12 + ".png")) as image:
        assert (image.mode, image.size) == ("RGB", (9, 8))
    with Image.open(tmp_path / "train" / "masks" / ("a" * 12 + ".png")) as mask:
        assert mask.mode == "1"
        np.testing.assert_array_equal(np.asarray(mask), (one > 0) | (other > 0))


def test_a_source_that_is_not_the_data_set_ends_in_one_line_and_code_3(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "T91", ["t1.png"])
    with pytest.raises(LayoutError, match=r"T91: 1 pictures, expected 91; see the README beside prepare.py$"):
        pictures(tmp_path / "T91", expected=91)
    monkeypatch.setattr(sys, "argv", ["prepare.py", str(tmp_path / "missing")])
    with pytest.raises(SystemExit) as stop:
        run(lambda source: None, "a data set")
    assert stop.value.code == 3
    assert capsys.readouterr().err.endswith("missing: no such folder; give your unpacked copy of the data set\n")

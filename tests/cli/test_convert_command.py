from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torchvision

from densekit.cards import Card, read_card
from densekit.checkpoint import load_model, save_model
from densekit.models import create_model

SMALL = {"growth_rate": 8, "block_config": [1, 2], "num_init_features": 16, "bn_size": 2, "num_classes": 3}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    net = torchvision.models.DenseNet(8, (1, 2), 16, 2, 0, 3).eval()
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": {**state, "loss.weight": torch.rand(3)}}, "theirs.pth")
    return net


@pytest.fixture
def own():
    torch.manual_seed(0)
    card = Card("encoder", "densenet", SMALL, step=4, metrics={"top1": 0.5}, data="flowers", licence="CC0")
    save_model("own.safetensors", create_model("densenet", **SMALL), card)
    return card


def test_weights_of_others_become_a_checkpoint_and_everything_is_told(run, theirs):
    words = ["--normalize", "imagenet", "--licence", "CC-BY", "--data", "flowers"]
    result = run("encoder", "convert", "theirs.pth", "-o", "new.safetensors", *words)
    assert (result.code, result.out) == (0, ["new.safetensors"])
    assert result.err == [
        "theirs.pth: densenet in the words of torchvision; 55 renamed, 1 ignored, 0 filled in",
        "  taken from its 'state_dict'",
        "  without the prefix 'module.'",
        "  renamed: module.features.conv0.weight -> features.conv0.weight, module.features.norm0.weight -> "
        "features.norm0.weight, module.features.norm0.bias -> features.norm0.bias, and 52 more",
        "  ignored (outside of 'module.'): loss.weight",
    ]
    net, card = load_model("new.safetensors")
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert card == Card("encoder", "densenet", {**SMALL, **statistics}, licence="CC-BY", data="flowers")
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        normalized = torchvision.transforms.functional.normalize(x, *statistics.values())
        assert torch.allclose(net.eval()(x), theirs(normalized), atol=1e-5)


def test_without_statistics_it_is_said_what_weights_of_imagenet_expect(run, theirs):
    result = run("seg", "convert", "theirs.pth", "-o", "new.safetensors")
    assert "  takes images in 0..1 as they are; weights of ImageNet expect --normalize imagenet" in result.err
    assert read_card("new.safetensors").arguments == SMALL


def test_there_and_back_is_the_same_file_whatever_the_suffix(run, own):
    for name in ("there.safetensors", "there.pth"):
        assert run("seg", "convert", "own.safetensors", "-o", name, "--to", "torchvision").out == [name]
        assert run("seg", "convert", name, "-o", "back.safetensors", "--overwrite").code == 0
        assert Path("back.safetensors").read_bytes() == Path("own.safetensors").read_bytes()


def test_what_is_written_says_how_to_feed_it(run, own):
    run("seg", "convert", "own.safetensors", "-o", "normalizing.safetensors", "--mean", ".5,.5,.5", "--std", "1,1,2")
    assert read_card("normalizing.safetensors") == dataclasses.replace(
        own, arguments={**SMALL, "mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 2.0]}, metrics={}
    )
    result = run("seg", "convert", "normalizing.safetensors", "-o", "x.pth", "--to", "timm")
    assert result.err[-1] == (
        "  networks of timm do not normalise: give them images in 0..1 less [0.5, 0.5, 0.5], divided by [1.0, 1.0, 2.0]"
    )


def test_a_model_goes_by_its_name_too(run):
    result = run("sr", "convert", "rdn-tiny-x2", "-o", "new.safetensors", "--licence", "CC0")
    assert (result.code, result.out) == (0, ["new.safetensors"])
    assert read_card("new.safetensors").licence == "CC0"


def test_json_has_every_name(run, theirs):
    result = run("sr", "convert", "theirs.pth", "-o", "new.safetensors", "--json")
    record = json.loads(result.out[0])
    assert len(result.out) == 1
    assert (record["out"], record["to"], record["dialect"]) == ("new.safetensors", "densekit", "torchvision")
    assert (record["task"], record["model"], record["arguments"]) == ("encoder", "densenet", SMALL)
    assert len(record["renamed"]) == 55
    assert record["ignored"] == {"loss.weight": "outside of 'module.'"}
    assert result.err == []


def test_classes_get_names(run, tiny_seg):
    assert run("seg", "convert", tiny_seg, "-o", "new.safetensors", "--classes", "a, b,c").code == 0
    assert read_card("new.safetensors").classes == ("a", "b", "c")


def test_a_class_is_left_out(run, tiny_seg):
    assert run("seg", "convert", tiny_seg, "-o", "new.safetensors", "--drop-class", "1", "--classes", "a,b").code == 0
    net, card = load_model("new.safetensors")
    assert (card.arguments["num_classes"], card.classes, len(card.palette)) == (2, ("a", "b"), 2)
    x = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(net.eval()(x), load_model(tiny_seg)[0].eval()(x)[:, [0, 2]], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["theirs.pth", "-o", "new.pth"], 2, "-o new.pth: expected a name that ends with .safetensors"),
        (["theirs.pth", "-o", "gone/new.safetensors"], 2, "-o gone/new.safetensors: gone is no folder; make it first"),
        (["theirs.pth", "-o", "theirs.pth", "--to", "timm"], 2, "-o theirs.pth is the file that is read; choose"),
        (["theirs.pth", "-o", "own.safetensors"], 2, "-o own.safetensors already exists; add --overwrite or choose"),
        (
            ["own.safetensors", "-o", "x.pth", "--to", "torchvison"],
            2,
            "--to torchvison: no such dialect; did you mean 'torchvision'? (monai, ",
        ),
        (
            ["own.safetensors", "-o", "x.h5", "--to", "torchvision"],
            2,
            "x.h5: files of torchvision end with .safetensors, .pth, .pt, .bin",
        ),
        (
            ["own.safetensors", "-o", "x.pth", "--to", "andreasveit"],
            5,
            "x.pth: networks of andreasveit have the CIFAR stem",
        ),
        (["rdn-tiny-x2", "-o", "x.pth", "--to", "monai"], 2, "dialect 'monai': none of rdn"),
        (["own.safetensors", "-o", "n.safetensors", "--mean", "1,2,3"], 2, "--mean and --std belong together; give"),
        (
            ["own.safetensors", "-o", "n.safetensors", "--mean", "1,b,3", "--std", "1,1,1"],
            2,
            "--mean 1,b,3: expected numbers such as 0.485,0.456,0.406",
        ),
        (
            ["own.safetensors", "-o", "n.safetensors", "--mean", "1,1", "--std", "1,1"],
            2,
            "mean has 2 values: expected 3, one for each channel",
        ),
        (
            ["own.safetensors", "-o", "n.safetensors", "--normalize", "imagenet", "--std", "1,1,1"],
            2,
            "found --normalize and --mean or --std; give one of them",
        ),
        (["own.safetensors", "-o", "n.safetensors", "--value-range", "255"], 2, "--value-range: for super-resolution"),
        (["own.safetensors", "-o", "n.safetensors", "--classes", "a,b"], 2, "--classes: for segmentation, but"),
        (
            ["own.safetensors", "-o", "n.safetensors", "--drop-class", "1"],
            2,
            "a class can be dropped from an FC-DenseNet",
        ),
        (["graph.onnx", "-o", "n.safetensors"], 2, "graph.onnx: a graph that was exported, not weights; convert"),
        (["gone.pth", "-o", "n.safetensors"], 5, "gone.pth: no such file"),
        (["pickled.pth", "-o", "n.safetensors"], 5, "pickled.pth: holds more than tensors, such as a pickled module"),
        (["cut.safetensors", "-o", "n.safetensors"], 5, "cut.safetensors: "),
        (["pointer.pth", "-o", "n.safetensors"], 5, "pointer.pth: a Git LFS pointer, not the weights themselves"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(run, theirs, own, words, code, message):
    Path("graph.onnx").write_bytes(b"\x08\x08")
    torch.save(theirs, "pickled.pth")
    Path("cut.safetensors").write_bytes(Path("own.safetensors").read_bytes()[:-9])
    Path("pointer.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    result = run("seg", "convert", *words)
    assert (result.code, result.out) == (code, [])
    assert [line for line in result.err if line.startswith("error: ")] == result.err
    assert result.err[0].startswith(f"error: {message}")
    assert {path: path.read_bytes() for path in Path().iterdir()} == before

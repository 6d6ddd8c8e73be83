from __future__ import annotations

import json

import pytest

from densekit import pretrained
from densekit.cards import Card
from densekit.checkpoint import save_model
from densekit.models import create_model

RDN = {"scale": 2, "num_features": 8, "num_blocks": 1, "num_layers": 1, "growth_rate": 8}
FIGURES = {"psnr": 37.654321, "protocol": "rdn-y", "data": "data/set5/images"}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An embedded super-resolution and an embedded segmentation model."""
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    card = Card("sr", "rdn", RDN, step=12_000, metrics=FIGURES, data="data/t91/images", licence="free to share")
    save_model(tmp_path / "rdn-small-x2.safetensors", create_model("rdn", **RDN), card, half=True)
    arguments = {"num_classes": 2, "num_init_features": 8, "growth_rate": 4, "num_pools": 2, "num_layers": 1}
    card = Card("seg", "fc_densenet", arguments, classes=("road", "sky"))
    save_model(tmp_path / "fc-densenet-street.safetensors", create_model("fc_densenet", **arguments), card)
    return tmp_path


@pytest.mark.usefixtures("shelf")
def test_trained_models_stand_apart_from_architectures(run):
    result = run("models")
    assert (result.code, result.err) == (0, [])
    gap = result.out.index("")
    heads, *trained = result.out[:gap]
    assert heads.split()[0] == "name"
    street, small = (line.split() for line in trained)
    assert (street[:4], street[-1]) == (["fc-densenet-street", "seg", "2", "classes"], "-")
    assert small[:3] == ["rdn-small-x2", "sr", "x2"]
    assert "psnr 37.65 (rdn-y, data/set5/images)" in trained[1]
    assert trained[1].endswith("free to share")
    assert "embedded" in street
    assert result.out[gap + 1].split() == ["architecture", "task", "encoder"]
    rows = [line.split() for line in result.out[gap + 2 :]]
    assert ["rdn", "sr", "-"] in rows
    assert ["densenet121", "encoder", "yes"] in rows


@pytest.mark.usefixtures("shelf")
def test_a_pattern_selects(run):
    assert [line.split()[0] for line in run("models", "rdn-*").out] == ["name", "rdn-small-x2"]
    assert [line.split()[0] for line in run("models", "rdn_?").out] == ["architecture", "rdn_a", "rdn_b"]


def test_the_json_of_a_model_keeps_its_keys(run, shelf):
    records = [json.loads(line) for line in run("models", "rdn*", "--json").out]
    assert records[0] == {
        "name": "rdn-small-x2",
        "kind": "trained",
        "state": "embedded",
        "task": "sr",
        "model": "rdn",
        "arguments": RDN,
        "classes": [],
        "step": 12_000,
        "metrics": FIGURES,
        "parameters": sum(parameter.numel() for parameter in create_model("rdn", **RDN).parameters()),
        "bytes": (shelf / "rdn-small-x2.safetensors").stat().st_size,
        "data": "data/t91/images",
        "licence": "free to share",
    }
    assert records[1] == {"name": "rdn", "kind": "architecture", "task": "sr", "encoder": False}


def test_parameters_are_counted_without_statistics_of_norms(run):
    for name in pretrained.trained_names():
        net, _ = pretrained.open_model(name)
        record = json.loads(run("models", name, "--json").out[0])
        assert record["parameters"] == sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.usefixtures("shelf")
def test_a_pattern_without_a_match_names_the_nearest_model(run):
    result = run("models", "rdn-smal-x2")
    assert (result.code, result.out) == (2, [])
    assert result.err == ["error: no model matches 'rdn-smal-x2'; did you mean 'rdn-small-x2'?"]


@pytest.mark.usefixtures("shelf")
def test_an_architecture_cannot_predict_and_the_trained_models_are_named(run, tmp_path, picture):
    given = picture(tmp_path / "pictures" / "a.png")
    architecture = run("sr", "predict", given, "-m", "rdn")
    assert architecture.code == 2
    assert architecture.err[0].startswith("error: rdn is an architecture without weights; trained ")
    assert architecture.err[0].endswith("rdn-small-x2")
    other = run("sr", "predict", given, "-m", "fc-densenet-street")
    assert other.code == 2
    assert other.err == ["error: fc-densenet-street: a model of task seg, not sr; models of task sr: rdn-small-x2"]
    none = run("seg", "predict", given)
    assert none.code == 2
    assert none.err == ["error: seg predict needs a model: -m NAME (fc-densenet-street) or -m FILE.safetensors"]

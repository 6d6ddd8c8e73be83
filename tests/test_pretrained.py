from __future__ import annotations

import shutil

import pytest
import torch

from densekit import pretrained
from densekit.cards import Card
from densekit.checkpoint import load_model, save_model
from densekit.errors import CheckpointError, ConfigError
from densekit.models import create_model, model_names
from densekit.pretrained import create_encoder, find_weights, list_models, trained_cards, trained_names

ENCODER = {"growth_rate": 4, "block_config": [1, 2], "num_init_features": 8}


@pytest.fixture
def shelf(tmp_path, monkeypatch, tiny_sr, tiny_seg):
    """A folder of embedded models that holds two."""
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    shutil.copy(tiny_sr, tmp_path / "rdn-tiny-x2.safetensors")
    shutil.copy(tiny_seg, tmp_path / "fc-densenet-nuclei.safetensors")
    return tmp_path


@pytest.fixture
def classifier(tmp_path):
    """A DenseNet classifier of two blocks with seeded weights and statistics that are not those of the start."""
    torch.manual_seed(0)
    net = create_model("densenet", **ENCODER, num_classes=3)
    net(torch.rand(2, 3, 32, 32))
    save_model(tmp_path / "classifier.safetensors", net, Card("encoder", "densenet", {**ENCODER, "num_classes": 3}))
    return tmp_path / "classifier.safetensors"


def test_names_are_matched_by_pattern(shelf):
    assert trained_names() == ["fc-densenet-nuclei", "rdn-tiny-x2"]
    assert trained_names("rdn*") == ["rdn-tiny-x2"]
    assert list_models("rdn*") == [*model_names("rdn*"), "rdn-tiny-x2"]


def test_cards_come_by_name(shelf):
    cards = trained_cards()
    assert {name: card.task for name, card in cards.items()} == {"fc-densenet-nuclei": "seg", "rdn-tiny-x2": "sr"}


def test_weights_are_found_by_name_and_by_path(shelf, tiny_seg):
    assert find_weights("rdn-tiny-x2") == shelf / "rdn-tiny-x2.safetensors"
    assert find_weights(tiny_seg) == find_weights(str(tiny_seg)) == tiny_seg


def test_a_name_that_is_none_gets_a_suggestion(shelf):
    with pytest.raises(
        ConfigError, match=r"model 'rdn-tiny-x3': no such model; did you mean 'rdn-tiny-x2'\? \(densekit models"
    ):
        find_weights("rdn-tiny-x3")


def test_an_architecture_is_told_from_a_trained_model(shelf, tmp_path_factory, monkeypatch):
    with pytest.raises(ConfigError, match=r"rdn_a is an architecture without weights; trained models: rdn-tiny-x2$"):
        find_weights("rdn_a")
    with pytest.raises(ConfigError, match=r"trained models: fc-densenet-nuclei, rdn-tiny-x2$"):
        find_weights("densenet121")
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path_factory.mktemp("empty"))
    with pytest.raises(ConfigError, match=r"trained models: none$"):
        find_weights("rdn_a")


@pytest.mark.parametrize("path", ["absent.safetensors", "runs/x/best", "a\nb.safetensors"])
def test_a_path_that_is_none_is_one_line(shelf, path):
    with pytest.raises(
        CheckpointError, match=r"no such file; give a \.safetensors file or a name from densekit models"
    ) as error:
        find_weights(path)
    assert "\n" not in str(error.value)


def test_an_encoder_takes_the_weights_of_a_classifier(classifier):
    encoder = create_encoder("densenet", weights=classifier, **ENCODER, out_indices=(1, 2)).eval()
    net, x = load_model(classifier)[0].eval(), torch.rand(1, 3, 32, 32)
    own, given = encoder.state_dict(), net.state_dict()
    assert own
    assert all(torch.equal(value, given[name]) for name, value in own.items())
    head = torch.nn.Sequential(*list(net.features)[:5])  # stem, pool, first block; the tap is before its transition
    assert [tuple(y.shape[1:]) for y in encoder(x)] == [(12, 8, 8), (14, 4, 4)]
    assert head(x).shape[1:] == (12, 8, 8)


def test_an_encoder_without_weights_is_random():
    torch.manual_seed(0)
    one, other = (create_encoder("densenet", **ENCODER, out_indices=(1,)) for _ in range(2))
    assert not torch.equal(one.features.conv0.weight, other.features.conv0.weight)


def test_weights_that_do_not_fit_an_encoder_are_refused(classifier, tiny_sr):
    with pytest.raises(
        CheckpointError, match=r"classifier\.safetensors: features\.conv0\.weight is \(8, 3, 7, 7\), but densenet needs"
    ):
        create_encoder("densenet", weights=classifier, **{**ENCODER, "num_init_features": 12}, out_indices=(1,))
    with pytest.raises(
        CheckpointError, match=r"tiny-sr\.safetensors: lacks features\.conv0\.weight, which densenet needs"
    ):
        create_encoder("densenet", weights=tiny_sr, **ENCODER, out_indices=(1,))


def test_an_encoder_that_is_none_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"encoder 'densenet122': no such encoder; did you mean 'densenet121'"):
        create_encoder("densenet122")

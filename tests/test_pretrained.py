from __future__ import annotations

import shutil

import pytest
import torch
import torchvision

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
        CheckpointError, match="no such file; give a file of weights, a name from densekit models or a hub id"
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
    with pytest.raises(CheckpointError) as error:
        create_encoder("densenet", weights=classifier, **{**ENCODER, "num_init_features": 12}, out_indices=(1,))
    assert str(error.value) == (
        f"{classifier}: features.conv0.weight is (8, 3, 7, 7), but densenet needs (12, 3, 7, 7) "
        "(14 of its 23 tensors do not fit); it holds densenet"
    )
    with pytest.raises(CheckpointError) as error:
        create_encoder("densenet", weights=tiny_sr, **ENCODER, out_indices=(1,))
    assert str(error.value) == (
        f"{tiny_sr}: lacks features.conv0.weight, which densenet needs (23 of its 23 tensors do not fit); it holds rdn"
    )


def test_an_encoder_takes_the_weights_that_others_saved(tmp_path, caplog):
    theirs = torchvision.models.DenseNet(4, (1, 2), 8, 4, 0, 3)
    torch.save({"state_dict": {f"module.{n}": t for n, t in theirs.state_dict().items()}}, tmp_path / "theirs.pth")
    with caplog.at_level("INFO", logger="densekit"):
        encoder = create_encoder("densenet", weights=tmp_path / "theirs.pth", **ENCODER, out_indices=(1, 2)).eval()
    assert caplog.messages == [
        f"{tmp_path}/theirs.pth: densenet in the words of torchvision; 55 renamed, 0 ignored, 0 filled in"
    ]
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(encoder(x)[-1], theirs.eval().features(x).relu(), atol=1e-5)


def test_weights_of_others_for_another_network_are_refused(tmp_path):
    torch.save(torchvision.models.DenseNet(6, (1, 2), 8, 4, 0, 3).state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(
        CheckpointError, match=r"theirs\.pth: features\.denseblock1\.denselayer1\.conv1\.weight is \(24, 8, "
    ):
        create_encoder("densenet", weights=tmp_path / "theirs.pth", **ENCODER)
    torch.save({"weight": torch.rand(3)}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"theirs\.pth: weights of no network known here \(weight \(3,\)\)"):
        create_encoder("densenet", weights=tmp_path / "theirs.pth", **ENCODER)
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    with pytest.raises(CheckpointError, match=r"graph\.onnx: a graph that was exported, not weights"):
        create_encoder("densenet", weights=tmp_path / "graph.onnx", **ENCODER)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_the_first_convolution_is_adapted_as_smp_does_it_and_that_is_logged(channels, classifier, caplog):
    from segmentation_models_pytorch.encoders._utils import patch_first_conv

    reference = load_model(classifier)[0].features
    patch_first_conv(reference, channels)
    with caplog.at_level("INFO", logger="densekit"):
        encoder = create_encoder("densenet", weights=classifier, **ENCODER, in_channels=channels)
    assert torch.allclose(encoder.features.conv0.weight, reference.conv0.weight, atol=1e-7)
    how = "summed" if channels == 1 else f"repeated and scaled by 3/{channels}"
    assert caplog.messages == [f"{classifier}: features.conv0.weight goes from 3 channels to {channels}: {how}"]


@pytest.mark.parametrize(
    ("given", "mean", "std"),
    [
        ({}, [0.1, 0.2, 0.6], [1, 2, 3]),
        ({"in_channels": 1}, [0.3], [2]),
        ({"in_channels": 5}, [0.1, 0.2, 0.6, 0.1, 0.2], [1, 2, 3, 1, 2]),
        ({"mean": (0.0, 0.0, 0.0)}, [0, 0, 0], [1, 2, 3]),
    ],
)
def test_weights_bring_the_statistics_of_their_network(given, mean, std, tmp_path):
    arguments = {**ENCODER, "num_classes": 3, "mean": [0.1, 0.2, 0.6], "std": [1.0, 2.0, 3.0]}
    path = tmp_path / "x.safetensors"
    save_model(path, create_model("densenet", **arguments), Card("encoder", "densenet", arguments))
    encoder = create_encoder("densenet", weights=path, **ENCODER, **given)
    assert torch.allclose(encoder.mean.flatten(), torch.tensor(mean, dtype=torch.float32))
    assert torch.allclose(encoder.std.flatten(), torch.tensor(std, dtype=torch.float32))


def test_an_encoder_that_is_none_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"encoder 'densenet122': no such encoder; did you mean 'densenet121'"):
        create_encoder("densenet122")


def test_an_encoder_takes_its_weights_out_of_a_network_over_it(tmp_path):
    torch.manual_seed(0)
    arguments = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8, "mean": [0.4, 0.5, 0.6]}
    net = create_model("unet", num_classes=2, decoder_channels=[16, 8, 8, 4, 4], **arguments)
    net(torch.rand(2, 3, 64, 64))
    save_model(
        tmp_path / "unet.safetensors",
        net,
        Card("seg", "unet", {"num_classes": 2, "decoder_channels": [16, 8, 8, 4, 4], **arguments}),
    )
    encoder = create_encoder("densenet", weights=tmp_path / "unet.safetensors", **{**arguments, "mean": None}).eval()
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(encoder(x), net.eval().encoder(x)[2:])

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models import vgg

from densekit.errors import CheckpointError, ConfigError
from densekit.losses import Perceptual
from densekit.losses.perceptual import REAL_ESRGAN, layer_names


@pytest.fixture(scope="module")
def theirs():
    """Torchvision's VGG19 but its classifier, with ReLUs that leave their input as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        features = vgg.make_layers(vgg.cfgs["E"])
    for module in features:
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    return features


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    state = {f"features.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({**state, "classifier.0.weight": torch.zeros(1)}, path)
    return path


@pytest.fixture
def pair():
    return torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layers", [None, REAL_ESRGAN, {"relu3_3": 2.0}])
def test_the_loss_is_that_of_torchvisions_features(theirs, file, pair, layers):
    sr, hr = pair
    sr.requires_grad_()
    expected = 0.0
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    a, b = (((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)) for x in (sr, hr))
    numbers = {"conv1_2": 2, "conv2_2": 7, "conv3_4": 16, "relu3_3": 15, "conv4_4": 25, "conv5_4": 34}  # by hand
    for name, weight in (layers or {"conv5_4": 1.0}).items():
        part = theirs[: numbers[name] + 1]
        expected = expected + weight * F.l1_loss(part(a), part(b))
    found = Perceptual(file, layers)(sr, hr)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, sr), torch.autograd.grad(expected, sr), strict=True):
        torch.testing.assert_close(one, other)


def test_the_layers_have_the_numbers_of_torchvision(theirs):
    kinds = {"conv": torch.nn.Conv2d, "relu": torch.nn.ReLU, "pool": torch.nn.MaxPool2d}
    assert len(layer_names()) == len(theirs)
    assert all(isinstance(module, kinds[name[:4]]) for name, module in zip(layer_names(), theirs, strict=True))


def test_a_safetensors_file_is_read_alike(theirs, file, pair, tmp_path):
    path = tmp_path / "vgg19.safetensors"
    save_file({f"features.{key}": value for key, value in theirs.state_dict().items()}, path)
    layers = {"conv2_1": 1.0}
    assert torch.equal(Perceptual(path, layers)(*pair), Perceptual(file, layers)(*pair))


def test_the_network_is_frozen_and_goes_no_further_than_its_layers(pair):
    loss = Perceptual(None, {"conv2_1": 1.0})
    assert len(loss.features) == 6
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    state = torch.random.get_rng_state()
    assert torch.equal(Perceptual(None, {"conv2_1": 1.0})(*pair), loss(*pair))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loss(pair[0], pair[0]) == 0


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"conv5_5": 1.0}, "VGG19 has no layer 'conv5_5'; did you mean 'conv5_4'? (such as conv5_4 or relu3_3)"),
        ({}, "the perceptual loss has no layers; expected one at least, such as conv5_4"),
    ],
)
def test_layers_that_are_none_are_refused(layers, message):
    with pytest.raises(ConfigError) as caught:
        Perceptual(None, layers)
    assert str(caught.value) == message


def test_without_torchvision_the_downloaded_weights_say_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ConfigError, match="which is missing; run: pip install torchvision, or give a file"):
        Perceptual("imagenet", {"conv1_1": 1.0})
    Perceptual(None, {"conv1_1": 1.0})


def test_a_file_that_is_not_vgg19_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    cases = {
        "cannot be read as weights of VGG19: No such file or directory": lambda: None,
        "cannot be read as weights of VGG19: damaged, or no file of weights": lambda: path.write_bytes(b"text"),
        "holds no plain table of tensors; expected torchvision's VGG19": lambda: torch.save([1, 2], path),
        "not the weights of torchvision's VGG19 (without batch norm); expected features.0.weight to features.34.bias": (
            lambda: torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
        ),
    }
    for message, write in cases.items():
        write()
        with pytest.raises(CheckpointError) as caught:
            Perceptual(path)
        assert str(caught.value) == f"{path}: {message}"


def test_a_pickle_that_would_run_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"features.0.weight": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="damaged, or no file of weights"):
        Perceptual(tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()

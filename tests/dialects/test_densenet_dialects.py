"""Weights of every library that has DenseNets: as the real one makes them, or as its published code lays them out."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from densekit.dialects import open_foreign, read_foreign
from densekit.dialects.densenet import describe
from densekit.errors import CheckpointError
from densekit.models import create_model
from densekit.pretrained import create_encoder
from tests.dialects.conftest import SMALL, largest_difference, randomize

GROWTH, BLOCKS = SMALL["growth_rate"], tuple(SMALL["block_config"])
SHAPE = {**SMALL, "num_classes": 5}
CIFAR = {"growth_rate": 6, "stem": "cifar", "num_classes": 10}


class Layer(nn.Module):
    """A dense layer with the names that it is told, in order: norm, 1x1, norm, 3x3; or norm, 3x3."""

    def __init__(self, channels: int, growth_rate: int, names: tuple[str, ...], width: int) -> None:
        super().__init__()
        widths = (channels, width)[: len(names) // 2]
        for i, (norm, conv) in enumerate(zip(names[::2], names[1::2], strict=True)):
            last = i == len(widths) - 1
            side = 3 if last else 1
            out = growth_rate if last else width
            self.add_module(norm, nn.BatchNorm2d(widths[i]))
            self.add_module(conv, nn.Conv2d(widths[i], out, side, padding=side // 2, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for module in self.children():
            y = F.relu(module(y)) if isinstance(module, nn.BatchNorm2d) else module(y)
        return torch.cat([x, y], 1)


class VeitNet(nn.Module):
    """The CIFAR network of andreasveit/densenet-pytorch, written down from its layout."""

    def __init__(self, num_layers: int, growth_rate: int, *, bottleneck: bool, reduction: float):
        super().__init__()
        names = ("bn1", "conv1", "bn2", "conv2")[: 4 if bottleneck else 2]
        channels = 2 * growth_rate
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for i in (1, 2, 3):
            layers = [Layer(channels + j * growth_rate, growth_rate, names, 4 * growth_rate) for j in range(num_layers)]
            block = nn.Module()
            block.layer = nn.Sequential(*layers)
            self.add_module(f"block{i}", block)
            channels += num_layers * growth_rate
            if i < 3:
                trans = nn.Module()
                trans.bn1 = nn.BatchNorm2d(channels)
                trans.conv1 = nn.Conv2d(channels, int(channels * reduction), 1, bias=False)
                self.add_module(f"trans{i}", trans)
                channels = int(channels * reduction)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for i in (1, 2, 3):
            x = self.get_submodule(f"block{i}.layer")(x)
            if i < 3:
                trans = self.get_submodule(f"trans{i}")
                x = F.avg_pool2d(trans.conv1(F.relu(trans.bn1(x))), 2)
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class PleissNet(nn.Module):
    """The CIFAR network of gpleiss/efficient_densenet_pytorch, written down from its layout."""

    def __init__(self, blocks: tuple[int, ...], growth_rate: int, channels: int, compression: float):
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, channels, 3, padding=1, bias=False))
        for i, num_layers in enumerate(blocks, 1):
            names = ("norm1", "conv1", "norm2", "conv2")
            block = nn.Sequential()
            for j in range(num_layers):
                block.add_module(f"denselayer{j + 1}", Layer(channels, growth_rate, names, 4 * growth_rate))
                channels += growth_rate
            self.features.add_module(f"denseblock{i}", block)
            if i < len(blocks):
                kept = int(channels * compression)
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(channels))
                transition.add_module("relu", nn.ReLU())
                transition.add_module("conv", nn.Conv2d(channels, kept, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2))
                self.features.add_module(f"transition{i}", transition)
                channels = kept
        self.features.add_module("norm_final", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))


def torchvisions(num_classes: int = 5) -> nn.Module:
    return randomize(
        torchvision.models.DenseNet(GROWTH, BLOCKS, SMALL["num_init_features"], SMALL["bn_size"], 0, num_classes)
    )


def monais(dimensions: int = 2) -> nn.Module:
    from monai.networks.nets.densenet import DenseNet

    return DenseNet(dimensions, 3, 5, SMALL["num_init_features"], GROWTH, BLOCKS, SMALL["bn_size"])


def timms() -> nn.Module:
    from timm.models.densenet import DenseNet

    return randomize(DenseNet(GROWTH, BLOCKS, num_classes=5, bn_size=SMALL["bn_size"]))  # starts with 2 k maps


def smps() -> nn.Module:
    from segmentation_models_pytorch.encoders.densenet import DenseNetEncoder

    arguments = {"growth_rate": GROWTH, "block_config": BLOCKS, "bn_size": SMALL["bn_size"]}
    return randomize(DenseNetEncoder([3, 16, 32, 24, 28, 22], num_init_features=16, **arguments))


def as_legacy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns torchvision's weights as the files on its server have them."""
    renamed = {re.sub(r"(denselayer\d+\.\w+)(\d)\.", r"\1.\2.", name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in renamed.items() if "num_batches_tracked" not in name}


@pytest.mark.parametrize(
    ("dialect", "build", "arguments"),
    [
        ("torchvision", torchvisions, SHAPE),
        ("torchvision", timms, SHAPE),
        ("monai", lambda: randomize(monais()), SHAPE),
        (
            "gpleiss",
            lambda: randomize(PleissNet((2, 3), 6, 10, 0.7)),
            {**CIFAR, "block_config": [2, 3], "num_init_features": 10, "compression": 0.7},
        ),
        (
            "andreasveit",
            lambda: randomize(VeitNet(2, 6, bottleneck=True, reduction=0.5)),
            {**CIFAR, "block_config": [2, 2, 2], "num_init_features": 12},
        ),
        (
            "andreasveit",
            lambda: randomize(VeitNet(3, 6, bottleneck=False, reduction=1.0)),
            {**CIFAR, "block_config": [3, 3, 3], "num_init_features": 12, "bn_size": None, "compression": 1.0},
        ),
    ],
    ids=["torchvision", "timm", "monai", "gpleiss", "andreasveit", "andreasveit-plain"],
)
def test_a_classifier_loads_strictly_and_gives_the_same_logits(dialect, build, arguments, save, picture):
    theirs = build()
    net, card, report = open_foreign(save(theirs.state_dict()))
    assert (report.dialect, card.task, card.model) == (dialect, "encoder", "densenet")
    assert card.arguments == arguments
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert (report.ignored, report.filled) == ({}, {})
    assert largest_difference(net, theirs, picture) <= 1e-5


def test_torchvisions_early_names_are_known_and_their_counters_start_at_zero(save, picture):
    theirs = torchvisions()
    state = as_legacy(theirs.state_dict())
    net, _, report = open_foreign(save(state))
    assert report.dialect == "torchvision-legacy"
    assert report.renamed["features.denseblock1.denselayer1.norm.1.weight"] == (
        "features.denseblock1.denselayer1.norm1.weight"
    )
    assert len(report.renamed) == 2 * 5 * sum(BLOCKS)
    assert set(report.filled) == {name for name in theirs.state_dict() if "num_batches_tracked" in name}
    assert set(report.filled.values()) == {"0, a counter of batches that the file lacks"}
    assert largest_difference(net, theirs, picture) == 0


def test_early_files_of_gpleiss_have_both_of_its_names(save):
    theirs = randomize(PleissNet((2, 2), 6, 12, 0.5))
    net, _, report = open_foreign(save(as_legacy(theirs.state_dict())))
    assert report.dialect == "gpleiss"
    assert largest_difference(net, theirs, torch.rand(1, 3, 32, 32)) <= 1e-5


def test_an_encoder_of_smp_has_no_classifier_and_gives_pooled_features(save, picture):
    theirs = smps()
    net, card, report = open_foreign(save(theirs.state_dict()))
    assert (report.dialect, card.arguments["num_classes"]) == ("smp", 0)
    assert report.notes == (
        "without a classifier (num_classes 0): the network gives pooled features, and its weights fit an encoder",
    )
    with torch.inference_mode():
        expected = F.relu(theirs(picture)[-1]).mean((2, 3))
        assert torch.allclose(net.eval()(picture), expected, atol=1e-5)
        assert torch.allclose(net.optimize()(picture), expected, atol=1e-4)


def test_an_encoder_takes_the_weights_of_a_whole_model_of_smp(save, picture):
    import segmentation_models_pytorch as smp

    theirs = randomize(smp.Unet("densenet121", encoder_weights=None, decoder_channels=(32, 16, 8, 8, 4)))
    path = save({"state_dict": {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()}})
    encoder = create_encoder("densenet121", weights=path, taps="smp", out_indices=range(5)).eval()
    report = read_foreign(path)[2]
    assert (report.model, report.ignored) == ("unet", {})
    with torch.inference_mode():
        for ours, expected in zip(encoder(picture), theirs.encoder(picture)[1:], strict=True):
            assert torch.allclose(ours, expected, atol=1e-5)


def test_an_encoder_takes_the_weights_of_timms_feature_extractor(save, picture):
    import timm

    theirs = randomize(timm.create_model("densenet121", features_only=True, out_indices=(1, 2)))
    path = save(theirs.state_dict())
    assert read_foreign(path)[2].dialect == "timm"
    encoder = create_encoder("densenet121", weights=path, taps="raw", out_indices=(1, 2)).eval()
    with torch.inference_mode():
        for ours, expected in zip(encoder(picture), theirs(picture), strict=True):
            assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["densenet121", "densenet161", "densenet169", "densenet201", "densenet264", "densenet_cifar", "densenet_bc_cifar"],
)
def test_every_network_with_a_name_is_known_by_its_shapes(name):
    with torch.device("meta"):
        state = create_model(name, in_channels=1, num_classes=14).state_dict()
    assert describe(state, {}) == (name, {"num_classes": 14, "in_channels": 1})


@pytest.mark.parametrize("compression", [0.3, 0.55, 0.5, 1.0, 0.123, 1 / 3])
def test_a_compression_that_gives_the_same_network_is_found(compression):
    arguments = {**SMALL, "compression": compression}
    state = create_model("densenet", **arguments).state_dict()
    name, found = describe(state, {})
    again = create_model(name, **found).state_dict()
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
        lambda state: {"epoch": 3, "arch": "densenet121", "model": state},
        lambda state: {"anything": state, "epoch": 3},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"model.net.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"state_dict": {f"backbone.densenet121.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model_ema": state, "model": {name: tensor + 1 for name, tensor in state.items()}},
        lambda state: {
            **{f"net.{name}": tensor + 1 for name, tensor in state.items()},
            **{f"net_ema.{name}": tensor for name, tensor in state.items()},
        },
        lambda state: {**{f"net.{name}": tensor for name, tensor in state.items()}, "loss.weight": torch.rand(5)},
    ],
    ids=["bare", "state_dict", "model", "only-one", "module", "lightning", "nested", "ema", "ema-prefix", "others"],
)
def test_what_programs_put_around_weights_is_taken_off(wrap, save, picture):
    theirs = torchvisions()
    net, _, report = open_foreign(save(wrap(theirs.state_dict())))
    assert largest_difference(net, theirs, picture) == 0
    assert report.dialect == "torchvision"


def test_what_was_taken_off_is_told(save):
    state = {f"module.{name}": tensor for name, tensor in torchvisions().state_dict().items()}
    report = read_foreign(save({"state_dict": {**state, "loss.weight": torch.rand(5)}}))[2]
    assert report.notes == ("taken from its 'state_dict'", "without the prefix 'module.'")
    assert report.renamed["module.features.conv0.weight"] == "features.conv0.weight"
    assert len(report.renamed) == len(state)
    assert report.ignored == {"loss.weight": "outside of 'module.'"}


def spoiled(change) -> dict[str, Tensor]:
    state = dict(torchvisions().state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("features.denseblock1.denselayer2.conv1.weight"),
            "lacks features.denseblock1.denselayer2.conv1.weight (1 in all) for densenet",
        ),
        (lambda s: s.pop("classifier.bias"), "lacks classifier.bias (1 in all) for densenet"),
        (lambda s: s.update(extra=torch.rand(2)), "has the unknown extra (1 in all) for densenet"),
        (
            lambda s: s.update({"features.norm0.bias": torch.rand(17)}),
            "features.norm0.bias is (17,), but densenet needs (16,)",
        ),
        (
            lambda s: s.update({"features.conv0.weight": torch.rand(16, 3, 5, 5)}),
            "features.conv0.weight is (16, 3, 5, 5); expected 7x7 with a norm behind it, or 3x3 without",
        ),
        (
            lambda s: s.update({"features.conv1.weight": torch.rand(16, 16, 3, 3)}),
            "a deep stem of three convolutions, as in timm's densenet264d; networks here have one",
        ),
        (
            lambda s: s.update({"features.transition1.conv.weight": torch.rand(5, 32, 1, 1)}),
            "transitions from [(32, 5), (24, 12), (28, 14)] channels (in, out); expected one share that all of them "
            "keep",
        ),
        (
            lambda s: s.update({"features.denseblock1.denselayer1.conv1.weight": torch.rand(12, 16, 1, 1)}),
            "a bottleneck of 1.5 times the growth rate; expected a whole number",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if "transition2" in name],
            "begins like weights of torchvision, but is not all of a network: it lacks "
            "features.transition2.conv.weight",
        ),
        (
            lambda s: s["features.norm5.running_var"].fill_(torch.nan),
            "features.norm5.running_var holds values that are not finite; training went wrong, take an older one",
        ),
        (
            lambda s: s.update({"features.norm0.weight": torch.ones(16, dtype=torch.int64)}),
            "features.norm0.weight is torch.int64, but densenet needs torch.float32",
        ),
    ],
)
def test_a_file_that_is_not_all_of_a_network_is_refused_with_the_reason(change, message, save):
    path = save(spoiled(change))
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == f"{path}: {message}"


def test_networks_that_are_none_of_ours_are_named(save):
    from timm.models.densenet import DenseNet

    deep = DenseNet(GROWTH, BLOCKS, stem_type="deep")
    with pytest.raises(CheckpointError, match=r"a deep stem of three convolutions, as in timm's densenet264d"):
        open_foreign(save(deep.state_dict()))
    with pytest.raises(CheckpointError, match=r"conv0.weight is \(16, 3, 7, 7, 7\), for pictures of 3 dimensions"):
        open_foreign(save(monais(3).state_dict()))
    with pytest.raises(CheckpointError) as error:
        open_foreign(save(torchvision.models.squeezenet1_1(weights=None).state_dict()))
    assert "weights of no network known here (features.0.weight (64, 3, 3, 3), features.0.bias (64,)" in str(
        error.value
    )
    assert "known are files of monai, gpleiss, torchvision-legacy, torchvision, smp, timm, andreasveit" in str(
        error.value
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "dialect", "prefix"),
    [(dict, "torchvision", ""), (as_legacy, "torchvision-legacy", "module.densenet121.")],
    ids=["today", "chexnet"],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_classifier_in_a_sequential_is_taken_out_of_it(names, dialect, prefix, place, save, picture):
    theirs = torchvisions()
    theirs.classifier = nn.Sequential(*[nn.Identity()] * place, theirs.classifier, nn.Sigmoid())
    state = {f"{prefix}{name}": tensor for name, tensor in names(theirs.state_dict()).items()}
    path = save({"epoch": 1, "arch": "densenet121", "state_dict": state})
    net, card, report = open_foreign(path)
    assert (report.dialect, card.arguments) == (dialect, SHAPE)
    assert report.renamed[f"{prefix}classifier.{place}.weight"] == "classifier.weight"
    assert report.notes[-1] == (
        "its classifier is one of several layers, of which the others have no weights and are left out, such as "
        "CheXNet's sigmoid: the network gives logits"
    )
    assert largest_difference(nn.Sequential(net, nn.Sigmoid()), theirs, picture) <= 1e-5


def test_a_classifier_of_more_layers_with_weights_is_none_of_ours(save):
    theirs = torchvisions()
    theirs.classifier = nn.Sequential(nn.Linear(theirs.classifier.in_features, 4), nn.ReLU(), nn.Linear(4, 5))
    with pytest.raises(CheckpointError, match=r"has the unknown classifier\.0\.bias \(4 in all\) for densenet$"):
        open_foreign(save(theirs.state_dict()))

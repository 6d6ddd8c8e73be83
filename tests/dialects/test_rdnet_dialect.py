"""RDNet, as timm makes it and as its authors' files name it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from densekit.cards import Card
from densekit.dialects import convert, open_foreign, read_foreign
from densekit.dialects.rdnet import describe
from densekit.errors import CheckpointError
from densekit.models import create_model
from densekit.pretrained import create_encoder
from tests.dialects.conftest import largest_difference

SMALL = {
    "in_channels": 4,
    "growth_rate": [8, 16, 8],
    "block_config": [2, 1, 2],
    "strides": [1, 2, 1],
    "squeeze_from": 1,
    "num_init_features": 16,
    "num_classes": 5,
}


def randomize(net: nn.Module) -> nn.Module:
    """Gives every weight and factor a size at which all layers count; gamma starts as one millionth."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            nn.init.normal_(parameter, 0 if name.endswith("bias") else 1, 0.3, generator=generator)
    return net.eval()


def timms(**options) -> nn.Module:
    from timm.models.rdnet import RDNet

    blocks = {"growth_rates": (8, 16, 8), "num_blocks_list": (2, 1, 2), "is_downsample_block": (None, True, False)}
    return randomize(
        RDNet(
            num_init_features=16,
            block_type=("Block", "BlockESE", "BlockESE"),
            in_chans=4,
            num_classes=5,
            **blocks,
            **options,
        )
    )


def as_authors(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {"model": {name.replace("stem.", "stem.stem."): tensor for name, tensor in state.items()}}


@pytest.fixture(scope="module")
def theirs():
    return timms()


@pytest.fixture
def picture():
    return torch.rand(2, 4, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dialect", "change"), [("timm", dict), ("naver-ai", as_authors)])
def test_a_classifier_loads_strictly_and_gives_the_same_logits(dialect, change, theirs, save, picture):
    net, card, report = open_foreign(save(change(theirs.state_dict())))
    assert (report.dialect, card.task, card.model, card.arguments) == (dialect, "encoder", "rdnet_tiny", SMALL)
    assert (report.ignored, report.filled) == ({}, {})
    assert report.renamed.keys() == (
        {f"stem.stem.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
        if dialect == "naver-ai"
        else set()
    )
    assert largest_difference(net, theirs, picture) <= 1e-5


@pytest.mark.parametrize("ratio", [1.5, 3.0, 4.0])
@pytest.mark.parametrize("compression", [0.4, 0.5, 0.75, 1.0])
def test_widths_that_give_the_same_network_are_found(ratio, compression, save, picture):
    theirs = timms(bottleneck_width_ratio=ratio, transition_compression_ratio=compression)
    net, _, _ = open_foreign(save(theirs.state_dict()))
    assert largest_difference(net, theirs, picture) <= 1e-5


@pytest.mark.parametrize("name", ["rdnet_tiny", "rdnet_small", "rdnet_base", "rdnet_large"])
def test_every_network_with_a_name_is_known_by_its_shapes(name):
    with torch.device("meta"):
        state = create_model(name, num_classes=7).state_dict()
    assert describe(state, {}) == (name, {"num_classes": 7})


def test_an_encoder_takes_the_weights_of_timms_feature_extractor(save, picture):
    from timm.models._features import FeatureListNet

    theirs = FeatureListNet(timms(), out_indices=(0, 1), flatten_sequential=True).eval()
    path = save(theirs.state_dict())
    report = read_foreign(path)[2]
    assert (report.dialect, report.model) == ("timm", "rdnet_tiny")
    assert report.notes == ("without a classifier: its weights fit an encoder only",)
    arguments = {key: value for key, value in SMALL.items() if key != "num_classes"}
    encoder = create_encoder("rdnet_tiny", weights=path, **arguments, out_indices=(1, 2)).eval()
    with torch.inference_mode():
        for ours, expected in zip(encoder(picture), theirs(picture), strict=True):
            assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    with pytest.raises(CheckpointError, match=r"theirs\.pth: lacks head\.fc\.bias \(4 in all\) for rdnet_tiny$"):
        open_foreign(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dialect", ["timm", "naver-ai"])
def test_there_and_back_gives_the_same_bytes(dialect, suffix, tmp_path, theirs, own):
    source = own(Card("encoder", "rdnet_tiny", {**SMALL, "drop_path_rate": 0.15, "mean": [0.5] * 4}, licence="CC0"))
    there = tmp_path / f"there{suffix}"
    convert(source, there, to=dialect)
    if dialect == "timm" and suffix == ".pth":
        theirs.load_state_dict(torch.load(there, weights_only=True), strict=True)
    convert(there, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("dense_stages.1.2.dense_block0.gamma"),
            "begins like weights of timm, but is not all of a network: it lacks dense_stages.1.2.dense_block0.gamma",
        ),
        (lambda s: s.pop("dense_stages.0.0.dense_block1.gamma"), "lacks dense_stages.0.0.dense_block1.gamma (1 in"),
        (
            lambda s: s.update({"dense_stages.1.1.weight": torch.rand(12, 32, 2, 2)}),
            "an RDNet whose transitions, or layers, have no common ratio of channels; expected one",
        ),
    ],
)
def test_a_file_that_is_not_all_of_a_network_is_refused_with_the_reason(change, message, theirs, save):
    state = dict(theirs.state_dict())
    change(state)
    path = save(state)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value).startswith(f"{path}: {message}")

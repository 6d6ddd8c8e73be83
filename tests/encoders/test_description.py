from __future__ import annotations

import pytest
import timm
import torch

from densekit.encoders import build, describe, summarise
from densekit.encoders.opening import every_index, on_paper
from densekit.errors import ConfigError


@pytest.mark.slow
def test_densenet121_is_described_as_its_paper_has_it():
    described = describe("densenet121")
    assert [tap.shape for tap in described.taps] == [
        (64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (1024, 7, 7)
    ]  # fmt: skip
    assert [tap.reduction for tap in described.taps] == [2, 4, 8, 16, 32]
    assert [tap.index for tap in described.taps] == [0, 1, 2, 3, 4]
    assert [tap.radius for tap in described.taps] == [3, 29, 129, 521, 1049]
    assert [tap.module for tap in described.taps][::4] == ["features.relu0", "features.relu5"]
    assert (described.parameters, described.network_parameters) == (6_953_856, 7_978_856)
    assert described.network_macs - described.macs == 1024 * 1000
    assert described.multiple_of == 32
    assert list(described.training_bytes) == ["speed", "balanced", "lean", "min"]


def test_sizes_and_strides_are_those_asked_for(tiny):
    described = describe(tiny, size=(64, 96), out_indices=(1, 4), output_stride=8, in_channels=5)
    assert described.shape == (1, 5, 64, 96)
    assert [(tap.index, tap.shape, tap.reduction) for tap in described.taps] == [
        (1, (12, 16, 24), 4), (4, (11, 8, 12), 8)
    ]  # fmt: skip
    assert described.network_macs is None  # no classifier has an output stride


def test_the_radius_of_a_tap_is_how_far_its_gradient_reaches(tiny):
    torch.manual_seed(0)
    for tap in describe(tiny, size=(128, 128)).taps[:3]:
        encoder = build(tiny, out_indices=(tap.index,)).eval()
        side = 2 * (tap.radius + tap.reduction) // 32 * 32 + 64
        x = torch.rand(1, 3, side, side, requires_grad=True)
        feature = encoder(x)[0]
        place = feature.shape[-1] // 2
        feature[0, :, place, place].sum().backward()
        columns = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
        low, high = place * tap.reduction, (place + 1) * tap.reduction - 1  # the pixels that the feature stands for
        assert columns.min() >= low - tap.radius
        assert columns.max() <= high + tap.radius


def test_the_whole_network_counts_with_its_classifier(tiny):
    described = describe(tiny, size=(64, 64))
    assert described.network_parameters - described.parameters == 11 * 5 + 5
    assert described.network_macs - described.macs == 11 * 5
    assert list(described.training_bytes) == ["speed", "balanced", "lean", "min"]
    assert described.multiple_of == 32


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("densenet_cifar", {"depth": 10}),
        ("rdnet_tiny", {"growth_rate": (8, 8), "block_config": (1, 2), "strides": (1, 2), "num_init_features": 16}),
        ("fc_densenet56", {"num_pools": 2, "num_layers": 1, "growth_rate": 4}),
    ],
)
def test_each_tap_names_a_module_and_has_the_shape_of_the_real_feature(name, arguments):
    described = describe(name, size=(32, 48), **arguments)
    encoder = build(name, out_indices=[tap.index for tap in described.taps], **arguments).eval()
    with torch.no_grad():
        shapes = [tuple(feature.shape[1:]) for feature in encoder(torch.rand(1, 3, 32, 48))]
    assert [tap.shape for tap in described.taps] == shapes
    assert all(encoder.get_submodule(tap.module) for tap in described.taps)
    assert described.parameters == sum(parameter.numel() for parameter in encoder.parameters())


def test_encoders_of_timm_are_described_beside_ours():
    described = describe("timm:test_resnet", size=(64, 64))
    real = timm.create_model("test_resnet", features_only=True)
    assert [tap.shape[0] for tap in described.taps] == real.feature_info.channels()
    assert described.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert [tap.radius for tap in described.taps] == [None] * len(described.taps)
    assert list(described.training_bytes) == ["speed"]


def test_a_summary_has_the_taps_that_an_encoder_gives_by_itself():
    summary = summarise("densenet_cifar")
    assert (summary.shape, summary.channels, summary.reductions) == ((1, 3, 32, 32), (160, 304, 448), (1, 2, 4))
    assert summary.parameters == 1_019_722 - 10 * 449


def test_every_tap_is_found_with_a_stem_and_without(tiny):
    assert every_index(tiny, {}) == (0, 1, 2, 3, 4)
    assert every_index("fc_densenet56", {"num_pools": 2}) == (0, 1, 2)
    assert every_index("timm:resnet18", {}) == (0, 1, 2, 3, 4)


def test_describing_draws_no_random_number(tiny):
    state = torch.get_rng_state()
    on_paper(tiny)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            "densenet_tiny",
            {"size": (8, 64)},
            "densenet_tiny: cannot take a picture of 8x64; give one of 32 pixels a side",
        ),
        ("densenet_tiny", {"out_indices": (7,)}, "expected ascending numbers from 0 (stem) to 4"),
        ("densenet_tiny", {"growth": 3}, "takes no such argument; did you mean 'growth_rate'?"),
        ("densenet12", {}, "no such encoder; did you mean 'densenet121'?"),
        ("timm:resnt18", {}, "timm:resnt18: timm knows no such model; did you mean 'resnet18'?"),
        ("timm:hf-hub:a/b", {}, "timm knows no such model"),
        ("timm:test_resnet", {"output_stride": 8}, "output_stride: timm:test_resnet takes no such argument"),
        ("timm:test_resnet", {"out_indices": (9,)}, "timm:test_resnet: cannot give features: "),
        ("timm:vit_tiny_patch16_224", {"size": (64, 64)}, "timm refuses a batch of (1, 3, 64, 64): "),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_what_cannot_be_described_is_refused_in_one_line(name, arguments, said):
    with pytest.raises(ConfigError) as caught:
        describe(name, **arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_of_timm_that_are_no_maps_are_refused():
    encoder = build("timm:test_resnet")

    class ChannelsLast(torch.nn.Module):
        def forward(self, x):
            return [x.new_zeros(1, 8, 8, channels) for channels in encoder.channels]

    encoder.body = ChannelsLast()
    with pytest.raises(ConfigError, match=r"a feature of shape \(1, 8, 8, \d+\); expected \(B, \d+, H, W\); choose an"):
        encoder(torch.rand(1, 3, 64, 64))

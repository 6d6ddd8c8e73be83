from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densekit.errors import ConfigError
from densekit.models import create_encoder, create_model

SMALL = {"num_init_features": 6, "growth_rate": 4, "num_pools": 2, "num_layers": (1, 2, 3, 2, 1)}


@pytest.mark.parametrize(
    ("layers", "eleven", "twelve", "with_statistics"),
    [
        (56, 1_376_795, 1_376_988, 1_397_963),
        (67, 3_463_243, 3_463_532, 3_502_923),
        (103, 9_322_091, 9_322_348, 9_425_163),
    ],
)
def test_the_papers_nets_have_the_parameters_of_their_code(layers, eleven, twelve, with_statistics, count, on_meta):
    net = on_meta(create_model, f"fc_densenet{layers}", num_classes=11)
    assert sum(p.numel() for p in net.parameters()) == eleven
    assert count(create_model, f"fc_densenet{layers}", num_classes=12) == twelve
    state = {key: v for key, v in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert sum(v.numel() for v in state.values()) == with_statistics
    # The name is the number of convolutions.
    assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in net.modules()) == layers


@pytest.mark.parametrize("size", [(97, 131), (33, 40), (32, 32)])
def test_any_size_from_32_up_gives_logits_of_that_size(size):
    net = create_model("fc_densenet56", num_classes=3, num_layers=1).eval()
    assert net.min_size == 32
    with torch.inference_mode():
        assert net(torch.rand(1, 3, *size)).shape == (1, 3, *size)


def test_the_output_is_that_of_the_original_code_written_out():
    net = create_model("fc_densenet", num_classes=3, **SMALL).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def dense(block, stack):
        for layer in block.children():
            stack = torch.cat([stack, layer.conv1(F.relu(layer.norm1(stack)))], 1)
        return stack

    x = torch.rand(1, 3, 21, 18)
    with torch.inference_mode():
        stack, skips = net.conv0(x), []
        for block, down in zip(net.down_blocks, net.transitions_down, strict=True):
            stack = dense(block, stack)
            skips.append(stack)
            stack = F.max_pool2d(down.conv(F.relu(down.norm(stack))), 2)
        stack = dense(net.bottleneck, stack)
        new = 12  # 3 layers of 4 maps; then 2 layers, then the whole last stack
        for up, block, skip, layers in zip(net.transitions_up, net.up_blocks, reversed(skips), (2, 1), strict=True):
            large = F.conv_transpose2d(stack[:, -new:], up.weight, up.bias, stride=2)
            stack = dense(block, torch.cat([large[..., : skip.shape[2], : skip.shape[3]], skip], 1))
            new = 4 * layers
        assert torch.equal(net(x), net.classifier(stack))


def test_every_parameter_gets_a_gradient(dead_parameters):
    # Dropout stays on: without it the norms cancel the biases of the convolutions before them.
    net = create_model("fc_densenet", num_classes=3, in_channels=1, **SMALL)
    assert dead_parameters(net, torch.rand(4, 1, 22, 29)) == []


def test_a_logit_depends_on_nothing_beyond_the_receptive_field(reach):
    net = create_model("fc_densenet", num_classes=2, num_init_features=3, growth_rate=2, num_pools=2, num_layers=1)
    assert 0.6 * net.receptive_field < reach(net, in_channels=3, size=96) <= net.receptive_field


def test_the_encoder_is_the_networks_way_down_and_its_weights_fit():
    net, encoder = create_model("fc_densenet", **SMALL).eval(), create_encoder("fc_densenet", **SMALL).eval()
    whole = net.state_dict()
    encoder.load_state_dict({key: whole[key] for key in encoder.state_dict()}, strict=True)
    seen = []
    for block in (*net.down_blocks, net.bottleneck):
        block.register_forward_pre_hook(lambda block, inputs: seen.append((block, inputs[0])))
    x = torch.rand(1, 3, 32, 24)
    with torch.inference_mode():
        net(x)
        expected = [block(stack) for block, stack in list(seen)]
        for ours, theirs in zip(encoder(x), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("output_stride", "reductions"),
    [(32, (1, 2, 4, 8, 16, 32)), (16, (1, 2, 4, 8, 16, 16)), (8, (1, 2, 4, 8, 8, 8))],
)
def test_every_tap_has_the_channels_and_the_reduction_it_promises(output_stride, reductions):
    arguments = {"num_layers": 1, "growth_rate": 4, "num_init_features": 4}
    encoder = create_encoder("fc_densenet", output_stride=output_stride, in_channels=4, **arguments).eval()
    assert encoder.reductions == reductions
    assert encoder.channels == (8, 12, 16, 20, 24, 28)
    assert encoder.multiple_of == output_stride
    for y, channels, reduction in zip(encoder(torch.rand(1, 4, 64, 96)), encoder.channels, reductions, strict=True):
        assert y.shape == (1, channels, 64 // reduction, 96 // reduction)
    plain = create_encoder("fc_densenet", in_channels=4, **arguments)
    encoder.load_state_dict(plain.state_dict(), strict=True)


@pytest.mark.parametrize("out_indices", [(0,), (0, 1), (1, 2)])
def test_blocks_that_no_tap_needs_are_not_built(out_indices, dead_parameters):
    encoder = create_encoder("fc_densenet", out_indices=out_indices, **SMALL)
    parts = {name.split(".")[0] for name, _ in encoder.named_parameters()}
    assert ("bottleneck" in parts) == (2 in out_indices)
    assert len(encoder.transitions_down) == out_indices[-1]
    assert dead_parameters(encoder, torch.rand(4, 3, 22, 29)) == []


@pytest.mark.parametrize("output_stride", [32, 8])
def test_a_feature_depends_on_nothing_beyond_the_receptive_field(output_stride, reach):
    encoder = create_encoder(
        "fc_densenet", num_init_features=3, growth_rate=2, num_pools=4, num_layers=1, output_stride=output_stride
    )
    assert 0.7 * encoder.receptive_field < reach(encoder, in_channels=3, size=192) <= encoder.receptive_field


def test_statistics_are_subtracted_and_divided_inside_and_are_not_in_the_state():
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    plain = create_model("fc_densenet", **SMALL).eval()
    normalizing = create_model("fc_densenet", mean=mean, std=std, **SMALL).eval()
    assert normalizing.state_dict().keys() == plain.state_dict().keys()
    normalizing.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 8, 8)
    normalized = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        assert torch.allclose(normalizing(x), plain(normalized), atol=1e-6)


def test_dropout_falls_on_single_values_after_every_convolution_but_the_first_and_the_last_ones(monkeypatch):
    dropped = []
    original = F.dropout

    def spy(x, p, training):
        dropped.append(p)
        return original(x, p, training)

    monkeypatch.setattr(F, "dropout", spy)
    create_model("fc_densenet", **SMALL)(torch.rand(2, 3, 16, 16))
    assert dropped == [0.2] * (9 + 2)  # nine layers, two transitions down


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": (1, 2, 3)}, "num_layers has 3 entries: expected 5 for 2 pools"),
        ({"std": (1.0, 1.0)}, "std has 2 values: expected 3, one for each channel"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError) as error:
        create_model("fc_densenet", **{**SMALL, **arguments})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_indices": (0, 3)}, "out_indices=(0, 3): expected ascending numbers from 0 (first block) to 2"),
        ({"output_stride": 2}, "output_stride=2: expected 8, 16 or 32"),
        ({"num_layers": (1, 2, 3)}, "num_layers has 3 entries: expected 5 for 2 pools"),
    ],
)
def test_impossible_arguments_of_the_encoder_are_named(arguments, message):
    with pytest.raises(ConfigError) as error:
        create_encoder("fc_densenet", **{**SMALL, **arguments})
    assert str(error.value) == message

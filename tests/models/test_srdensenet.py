from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from densekit.errors import ConfigError
from densekit.models import create_model

SMALL = {"num_features": 6, "num_blocks": 2, "num_layers": 3, "growth_rate": 4, "bottleneck_features": 5}
SECOND = {"deconv_size": 2, "bottleneck_activation": False, "tail_bias": False}


@pytest.mark.parametrize(("variant", "parameters"), [({}, 2_659_585), (SECOND, 2_003_456)])
def test_both_public_variants_have_their_parameters_and_see_66_pixels(variant, parameters, on_meta):
    net = on_meta(create_model, "srdensenet", **variant)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.receptive_field == 66


@pytest.mark.parametrize(("scale", "deconv_size"), [(2, 2), (2, 3), (3, 3), (4, 2), (4, 3), (8, 2), (8, 3)])
def test_the_receptive_field_is_exactly_what_an_output_pixel_depends_on(scale, deconv_size, reach):
    net = create_model("srdensenet", scale=scale, deconv_size=deconv_size, **SMALL)
    assert reach(net, in_channels=1, size=32) == net.receptive_field


@pytest.mark.parametrize(("scale", "deconv_size"), [(2, 4), (2, 6), (3, 4), (3, 5), (4, 4)])
def test_the_receptive_field_of_wider_kernels_is_at_most_a_pixel_too_large(scale, deconv_size, reach):
    net = create_model("srdensenet", scale=scale, deconv_size=deconv_size, **SMALL)
    assert 0 <= net.receptive_field - reach(net, in_channels=1, size=40) <= 1


@pytest.mark.parametrize("variant", [{}, SECOND])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_every_parameter_gets_a_gradient_and_the_output_is_scale_times_as_large(scale, variant, dead_parameters):
    variant = variant if scale != 3 else {**variant, "deconv_size": 3}
    net = create_model("srdensenet", scale=scale, in_channels=3, **SMALL, **variant)
    x = torch.rand(2, 3, 9, 12)
    assert net(x).shape == (2, 3, 9 * scale, 12 * scale)
    assert dead_parameters(net, x) == []


def test_the_output_is_that_of_the_public_code_written_out():
    net = create_model("srdensenet", **SMALL).eval()
    x = torch.rand(1, 1, 9, 7)
    with torch.inference_mode():
        stack = F.relu(net.low_level.conv(x))
        for block in net.blocks.children():
            new = F.relu(block.first.conv(stack))  # the only layer that sees the block's input
            for layer in block.dense.children():
                new = torch.cat([new, F.relu(layer.conv(new))], 1)
            stack = torch.cat([stack, new], 1)
        y = F.relu(net.bottleneck(stack))
        for deconv in net.deconvs:
            y = F.conv_transpose2d(y, deconv.weight, deconv.bias, stride=2, padding=1, output_padding=1).relu()
        assert torch.equal(net(x), net.reconstruction(y))


def test_a_kernel_that_leaves_gaps_is_refused():
    with pytest.raises(ConfigError) as error:
        create_model("srdensenet", scale=3, deconv_size=2, **SMALL)
    assert str(error.value) == "deconv_size=2 leaves gaps at stride 3: expected 3 or more"


def test_an_unknown_scale_is_refused():
    with pytest.raises(ConfigError) as error:
        create_model("srdensenet", scale=6, **SMALL)
    assert str(error.value) == "scale=6: expected 1, 2, 3, 4 or 8"

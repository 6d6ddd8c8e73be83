from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from densekit.errors import ConfigError
from densekit.models import create_model
from densekit.models.rdn import UPSAMPLERS
from densekit.resize import imresize

SMALL = {"num_blocks": 2, "num_layers": 2, "growth_rate": 4, "num_features": 6}


@pytest.mark.parametrize(
    ("name", "scale", "parameters", "radius"),
    [
        ("rdn_b", 2, 22_123_395, 133),
        ("rdn_b", 3, 22_308_035, 133),
        ("rdn_b", 4, 22_271_107, 133),
        ("rdn_a", 2, 5_616_515, 125),
        ("rdn_a", 3, 5_801_155, 125),
        ("rdn_a", 4, 5_764_227, 125),
    ],
)
def test_rdn_a_and_b_have_the_papers_parameters_and_radius(name, scale, parameters, radius, on_meta):
    net = on_meta(create_model, name, scale=scale)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.receptive_field == radius


def test_the_default_is_rdn_b_for_twice_the_size(count):
    assert count(create_model, "rdn") == 22_123_395


@pytest.mark.parametrize("bicubic_skip", [False, True])
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_receptive_field_is_exactly_what_an_output_pixel_depends_on(scale, upsampler, bicubic_skip, reach):
    net = create_model("rdn", scale=scale, upsampler=upsampler, bicubic_skip=bicubic_skip, **SMALL)
    # D C + 5; one less where no output convolution follows the shuffle, three more for ESPCN's 5x5 and two 3x3
    assert net.receptive_field == {"pixelshuffledirect": 8, "espcn": 12, "espcn_nearest": 12}.get(upsampler, 9)
    assert reach(net, in_channels=3, size=36) == net.receptive_field


@pytest.mark.parametrize("upsampler", UPSAMPLERS)
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_every_parameter_gets_a_gradient_and_the_output_is_scale_times_as_large(scale, upsampler, dead_parameters):
    net = create_model("rdn", scale=scale, upsampler=upsampler, in_channels=1, out_channels=2, **SMALL)
    x = torch.rand(2, 1, 9, 12)
    assert net(x).shape == (2, 2, 9 * scale, 12 * scale)
    assert dead_parameters(net, x) == []


@pytest.mark.parametrize(("scale", "parameters"), [(2, 5_541_795), (3, 5_634_115), (4, 5_578_787)])
def test_the_upsampler_of_edsr_is_as_wide_as_the_growth_rate(scale, parameters, count):
    assert count(create_model, "rdn_a", scale=scale, upsampler="pixelshuffle_growth") == parameters


@pytest.mark.parametrize("upsampler", ["espcn", "espcn_nearest"])
def test_espcns_upsampler_is_as_published(upsampler):
    net = create_model("rdn", scale=2, upsampler=upsampler, **SMALL).eval()
    convs = [module for module in net.tail if isinstance(module, torch.nn.Conv2d)]
    x = torch.rand(1, 6, 7, 8)
    with torch.inference_mode():
        y = convs[2](F.relu(convs[1](F.relu(convs[0](x)))))
        y = F.pixel_shuffle(y, 2) if upsampler == "espcn" else y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert torch.equal(net.tail(x), convs[3](y))
    assert [tuple(conv.weight.shape[::2]) for conv in convs] == [(64, 5), (32, 3), (12, 3), (3, 3)]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_skip_adds_the_benchmarks_bicubic_enlargement(scale):
    net = create_model("rdn", scale=scale, bicubic_skip=True, **SMALL).eval()
    x = torch.rand(1, 3, 16, 20)
    with torch.inference_mode():
        skip = net.skip(x)
        shallow = net.sfe1(x)
        assert not torch.allclose(net(x), skip, atol=1e-3)
        net.tail[-1].weight.zero_()
        net.tail[-1].bias.zero_()
        assert torch.equal(net(x), skip)
    assert shallow.shape == (1, 6, 16, 20)
    expected = imresize(x[0].permute(1, 2, 0).numpy(), scale)
    inside = slice(2 * scale, -2 * scale)  # at the border the benchmarks mirror, the skip repeats the edge
    difference = skip[0].permute(1, 2, 0).numpy()[inside, inside] - expected[inside, inside]
    assert abs(difference).max() < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 5}, "scale=5: expected 1, 2, 3, 4 or 8"),
        (
            {"upsampler": "pixelshufle"},
            "upsampler='pixelshufle': no such upsampler; did you mean 'pixelshuffle'? (pixelshuffle, "
            "pixelshuffle_growth, pixelshuffledirect, espcn, espcn_nearest)",
        ),
        ({"scale": 5, "upsampler": "espcn"}, "scale=5: expected 1, 2, 3, 4 or 8"),
        (
            {"bicubic_skip": True, "out_channels": 1},
            "bicubic_skip needs as many channels out as in, not 3 and 1",
        ),
        (
            {"memory": "sped"},
            "memory='sped': neither a memory policy nor a budget; did you mean 'speed'? (known: speed, balanced, lean, "
            "min; budgets: 2GiB, 800MB)",
        ),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError) as error:
        create_model("rdn", **{**SMALL, **arguments})
    assert str(error.value) == message

from __future__ import annotations

import re

import pytest
import torch
from spandrel.architectures.ESRGAN import ESRGAN

from densekit.errors import ConfigError
from densekit.models import create_model

SMALL = {"num_features": 4, "num_blocks": 1, "growth_rate": 3}


def rename(state: dict[str, torch.Tensor], num_blocks: int, num_ups: int) -> dict[str, torch.Tensor]:
    """Returns our names for those of the first ESRGAN, which spandrel keeps."""
    rows = [
        (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv5\.0\.", r"body.\1.rdb\2.fusion."),
        (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv1x1\.", r"body.\1.rdb\2.shortcut."),
        (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.dense.denselayer\3.conv."),
        (rf"^model\.1\.sub\.{num_blocks}\.", "conv_body."),
        (r"^model\.0\.", "conv_first."),
        *((rf"^model\.{3 * (i + 1)}\.", f"conv_ups.{i}.") for i in range(num_ups)),
        (rf"^model\.{3 * num_ups + 2}\.", "conv_hr."),
        (rf"^model\.{3 * num_ups + 4}\.", "conv_last."),
    ]
    renamed = {}
    for key, value in state.items():
        for pattern, name in rows:
            if re.match(pattern, key):
                renamed[re.sub(pattern, name, key)] = value
                break
    return renamed


@pytest.mark.parametrize(
    ("name", "scale", "parameters", "radius"),
    [
        ("rrdbnet", 4, 16_697_987, 349),
        ("rrdbnet_6b", 4, 4_467_779, 94),
        ("rrdbnet", 2, 16_703_171, 698),
        ("rrdbnet", 1, 16_723_907, 1396),
    ],
)
def test_rrdbnets_have_the_published_parameters_and_radius(name, scale, parameters, radius, on_meta):
    net = on_meta(create_model, name, scale=scale)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.receptive_field == radius


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(("scale", "unshuffle"), [(4, True), (2, True), (1, True), (2, False), (1, False), (8, False)])
def test_spandrels_esrgan_gives_the_same_picture(scale, unshuffle, plus):
    factor = 4 // scale if unshuffle else 1
    num_ups = (scale * factor).bit_length() - 1
    reference = ESRGAN(
        in_nc=3 * factor**2,
        num_filters=16,
        num_blocks=2,
        scale=scale * factor,
        shuffle_factor=factor if factor > 1 else None,
        plus=plus,
    ).eval()
    net = create_model("rrdbnet", scale=scale, num_features=16, num_blocks=2, unshuffle=unshuffle, plus=plus).eval()
    net.load_state_dict(rename(reference.state_dict(), 2, num_ups), strict=True)
    x = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        y = net(x)
        assert y.shape == (1, 3, 16 * scale, 24 * scale)
        assert (y - reference(x)).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("scale", "unshuffle", "plus", "multiple_of", "radius"),
    [
        (4, True, False, 1, 19),
        (4, True, True, 1, 19),
        (2, True, False, 2, 38),
        (1, True, False, 4, 76),
        (2, False, False, 1, 19),
        (1, False, False, 1, 19),
    ],
)
def test_the_receptive_field_is_exactly_what_an_output_pixel_depends_on(
    scale, unshuffle, plus, multiple_of, radius, reach
):
    net = create_model("rrdbnet", scale=scale, unshuffle=unshuffle, plus=plus, **SMALL)
    assert (net.multiple_of, net.receptive_field) == (multiple_of, radius)
    assert reach(net, in_channels=3, size=42 * multiple_of) == radius


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(("scale", "unshuffle"), [(8, True), (4, True), (2, True), (1, True), (2, False), (1, False)])
def test_every_parameter_gets_a_gradient(scale, unshuffle, plus, dead_parameters):
    net = create_model("rrdbnet", scale=scale, unshuffle=unshuffle, plus=plus, in_channels=1, out_channels=2, **SMALL)
    assert dead_parameters(net, torch.rand(2, 1, 16, 24)) == []


def test_dense_convolutions_start_at_a_tenth_of_he_initialisation():
    net = create_model("rrdbnet", num_blocks=1)
    conv = net.body[0].rdb2.dense.denselayer3.conv  # 3x3 over 64 + 2 * 32 maps
    assert conv.weight.std().item() == pytest.approx(0.1 * (2 / (9 * 128)) ** 0.5, rel=0.02)
    assert not conv.bias.any()
    assert net.conv_first.bias.any()


def test_an_unknown_scale_is_refused():
    with pytest.raises(ConfigError) as error:
        create_model("rrdbnet", scale=3, **SMALL)
    assert str(error.value) == "scale=3: expected 1, 2, 4 or 8"

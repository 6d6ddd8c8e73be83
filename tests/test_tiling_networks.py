"""The networks themselves through `run_exact`: their stated receptive field is enough of a halo, and not too large."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from densekit.models.fc_densenet import FCDenseNet
from densekit.models.rdn import RDN
from densekit.models.rrdbnet import RRDBNet
from densekit.models.srdensenet import SRDenseNet
from densekit.tiling import run_exact

SMALL_RDN = {"num_features": 6, "num_blocks": 2, "num_layers": 2, "growth_rate": 4}
SMALL_RRDB = {"num_features": 6, "num_blocks": 1, "growth_rate": 4, "residual_scale": 1.0}
SMALL_SRDENSENET = {
    "in_channels": 3, "num_features": 6, "num_blocks": 2, "num_layers": 2, "growth_rate": 4, "bottleneck_features": 8
}  # fmt: skip

NETWORKS = {
    **{f"rdn x{scale}": lambda scale=scale: RDN(scale, **SMALL_RDN) for scale in (2, 3, 4)},
    **{
        f"rdn x2 {upsampler}": lambda upsampler=upsampler: RDN(2, upsampler=upsampler, **SMALL_RDN)
        for upsampler in ("pixelshuffledirect", "pixelshuffle_growth", "espcn", "espcn_nearest")
    },
    "rdn x3 with bicubic skip": lambda: RDN(3, bicubic_skip=True, **SMALL_RDN),
    **{f"srdensenet x{scale}": lambda scale=scale: SRDenseNet(scale, **SMALL_SRDENSENET) for scale in (2, 3, 4)},
    "srdensenet x4, kernel 2": lambda: SRDenseNet(4, deconv_size=2, **SMALL_SRDENSENET),
    "rrdbnet x4": lambda: RRDBNet(4, **SMALL_RRDB),
    "rrdbnet x4 plus": lambda: RRDBNet(4, plus=True, **SMALL_RRDB),
    "rrdbnet x2 folded": lambda: RRDBNet(2, **SMALL_RRDB),
    "rrdbnet x1 folded": lambda: RRDBNet(1, **SMALL_RRDB),
    "rrdbnet x2 not folded": lambda: RRDBNet(2, unshuffle=False, **SMALL_RRDB),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, positive: bool) -> nn.Module:
    """Returns a network whose weights make pixels at the edge of its field count; the usual ones are too small.

    Positive ones multiply the amplitude in every layer, so that the longest path through a dense block counts most.
    """
    net = NETWORKS[name]().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        if positive:
            parameter.copy_((torch.rand(parameter.shape, generator=generator) + 0.5) * 30 / fan_in)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2 / fan_in**0.5)
    return net


def random_image(net: nn.Module) -> Tensor:
    """Returns an image larger than a tile with its halo, with sides that no tile size divides."""
    shape = 1, 3, 2 * net.receptive_field + 41, net.receptive_field + 43
    dtype = next(net.parameters()).dtype
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def run(net: nn.Module, x: Tensor, halo: int, tile_size: int | None = 23) -> Tensor:
    return run_exact(net, x, scale=net.scale, halo=halo, tile_size=tile_size, multiple_of=net.multiple_of)


def relative_error(y: Tensor, whole: Tensor) -> float:
    assert y.shape == whole.shape
    return float((y - whole).abs().max() / whole.abs().max())


def to_uint8(y: Tensor, whole: Tensor) -> Tensor:
    return ((y - whole.min()) / (whole.max() - whole.min()) * 255).round().clamp(0, 255).to(torch.uint8)


@networks
@pytest.mark.parametrize("positive", [False, True], ids=["amplified", "positive"])
def test_tiles_with_the_stated_field_give_the_whole_image_in_float64(name, positive):
    net = build(name, positive).double()
    x = random_image(net)
    assert relative_error(run(net, x, net.receptive_field), run(net, x, 0, tile_size=None)) <= 1e-12


@networks
def test_tiles_with_the_stated_field_give_the_whole_image_in_float32(name):
    # Positive weights: where terms cancel, float32 itself leaves 2e-6 of the amplitude.
    net = build(name, positive=True)
    x = random_image(net)
    assert relative_error(run(net, x, net.receptive_field), run(net, x, 0, tile_size=None)) <= 1e-6


@networks
def test_tiles_with_the_stated_field_give_the_whole_image_in_8_bits(name):
    net = build(name, positive=False)
    x = random_image(net)
    whole, tiled = run(net, x, 0, tile_size=None), run(net, x, net.receptive_field)
    difference = (to_uint8(tiled, whole).int() - to_uint8(whole, whole).int()).abs()
    assert int(difference.max()) <= 1
    assert int(difference.sum()) <= difference.numel() * 1e-4


@pytest.mark.parametrize("name", [name for name in NETWORKS if "folded" not in name or "not" in name])
def test_one_pixel_less_than_the_stated_field_shows(name):
    net = build(name, positive=True).double()
    x = random_image(net)
    assert relative_error(run(net, x, net.receptive_field - 1), run(net, x, 0, tile_size=None)) > 1e-11


def test_fc_densenet_is_exact_too_where_the_halo_holds_its_field_and_tiles_lie_on_the_grid_of_its_pools():
    torch.manual_seed(0)
    net = FCDenseNet(num_classes=3, num_init_features=6, growth_rate=4, num_pools=2, num_layers=1).eval().double()
    x = torch.rand(1, 3, 136, 100, dtype=torch.float64)
    with torch.no_grad():
        whole = net(x)
    tiled = run_exact(net, x, scale=1, halo=net.receptive_field, tile_size=32, multiple_of=4)
    assert relative_error(tiled, whole) <= 1e-12
    shifted = run_exact(net, x, scale=1, halo=net.receptive_field, tile_size=31, multiple_of=1)
    assert relative_error(shifted, whole) > 1e-3

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from densekit.errors import ConfigError
from densekit.models import MODELS
from densekit.models.discriminators import SpectralConv, UNetDiscriminator, VGGDiscriminator


def spectral_convs(net):
    return [module for module in net.modules() if isinstance(module, SpectralConv)]


def number_of_parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_unet_has_the_parameters_of_real_esrgans():
    assert number_of_parameters(UNetDiscriminator()) == 4_376_897


@pytest.mark.parametrize(("crop_size", "known"), [(128, 14_499_401), (256, 21_055_049)])
def test_the_vgg_has_the_parameters_of_esrgans(count, crop_size, known):
    assert count(VGGDiscriminator, crop_size) == known


@pytest.mark.parametrize("n", [4, 12])
def test_parameters_follow_the_number_of_features(n):
    halvings = sum(16 * wide * wide // 2 for wide in (2 * n, 4 * n, 8 * n))
    doublings = sum(9 * wide * wide // 2 for wide in (2 * n, 4 * n, 8 * n))
    around = 27 * n + n + 2 * 9 * n * n + 9 * n + 1
    assert number_of_parameters(UNetDiscriminator(num_features=n)) == around + halvings + doublings
    widths = [n, 2 * n, 4 * n, 8 * n]  # of a crop of 64: 64, 32, 16, 8 -> 4
    convs = 27 * n + n + sum(9 * a * b for a, b in pairwise(widths)) + sum(16 * w * w for w in widths)
    norms = 2 * (sum(widths) + sum(widths[1:]))
    assert number_of_parameters(VGGDiscriminator(64, num_features=n)) == convs + norms + (16 * 8 * n + 1) * 100 + 101


def reference_unet(net, x):
    """Real-ESRGAN's network, layer by layer, with torch's largest singular values."""

    def weight(conv):
        return conv.weight / torch.linalg.matrix_norm(conv.weight.flatten(1), 2)

    def halve(x, conv):
        return F.leaky_relu(F.conv2d(x, weight(conv), stride=2, padding=1), 0.2)

    def double(x, conv):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.leaky_relu(F.conv2d(x, weight(conv), padding=1), 0.2)

    x0 = F.leaky_relu(F.conv2d(x, net.first.weight, net.first.bias, padding=1), 0.2)
    x1 = halve(x0, net.downs[0])
    x2 = halve(x1, net.downs[1])
    x3 = halve(x2, net.downs[2])
    x4 = double(x3, net.ups[0]) + x2
    x5 = double(x4, net.ups[1]) + x1
    x6 = double(x5, net.ups[2]) + x0
    for conv in net.body:
        x6 = F.leaky_relu(F.conv2d(x6, weight(conv), padding=1), 0.2)
    return F.conv2d(x6, net.last.weight, net.last.bias, padding=1)


def test_the_unet_is_the_published_one(amplified):
    net = amplified(UNetDiscriminator(num_features=4))
    for conv in spectral_convs(net):
        conv.iterate(500)
    x = torch.rand(2, 3, 32, 24, dtype=torch.double)
    torch.testing.assert_close(net(x), reference_unet(net, x), rtol=1e-6, atol=1e-6)


def reference_vgg(net, x):
    """ESRGAN's network for 128 x 128, layer by layer: the second, fourth, ... convolution halves."""
    convs, norms = list(net.convs), [None, *net.norms]
    for number, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        x = F.conv2d(x, conv.weight, conv.bias, stride=1 + number % 2, padding=1)
        if norm is not None:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            shape = (1, -1, 1, 1)
            x = (x - mean) / torch.sqrt(var + 1e-5) * norm.weight.view(shape) + norm.bias.view(shape)
        x = torch.where(x > 0, x, 0.2 * x)
    assert x.shape[-2:] == (4, 4)
    x = x.flatten(1) @ net.hidden.weight.T + net.hidden.bias
    return torch.where(x > 0, x, 0.2 * x) @ net.last.weight.T + net.last.bias


@pytest.fixture
def amplified():
    """Weights and biases far from their start, where a missing bias or a wrong slope shows."""

    def make(net):
        with torch.no_grad():
            for parameter in net.double().parameters():
                parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 1))
        return net

    return make


@pytest.mark.parametrize("crop_size", [32, 128])
def test_the_vgg_is_the_published_one(amplified, crop_size):
    net = amplified(VGGDiscriminator(crop_size, num_features=4))
    x = torch.rand(3, 3, crop_size, crop_size, dtype=torch.double)
    torch.testing.assert_close(net(x), reference_vgg(net, x))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 40), (9, 15), (33, 50)])
def test_the_unet_judges_each_pixel_of_pictures_of_any_size(height, width):
    assert UNetDiscriminator(num_features=4)(torch.rand(2, 3, height, width)).shape == (2, 1, height, width)


@pytest.mark.parametrize("crop_size", [32, 33, 63, 64, 96, 100, 127, 128, 192, 256])
def test_the_vgg_judges_crops_of_any_size_as_a_whole(crop_size):
    net = VGGDiscriminator(crop_size, num_features=4)
    maps = []
    net.norms[-1].register_forward_hook(lambda module, given, result: maps.append(result.shape[-1]))
    assert net(torch.rand(2, 3, crop_size, crop_size)).shape == (2, 1)
    assert 4 <= maps[0] <= 7


def test_a_crop_that_is_too_small_is_refused():
    with pytest.raises(ConfigError) as caught:
        VGGDiscriminator(31)
    assert str(caught.value) == "crop_size=31: the discriminator needs crops of 32 pixels or more"


@pytest.mark.parametrize("net", [UNetDiscriminator(num_features=4), VGGDiscriminator(40, num_features=4)])
def test_every_weight_gets_a_gradient(dead_parameters, net):
    assert not dead_parameters(net, torch.rand(2, 3, 40, 40))


def test_the_largest_singular_value_is_one(amplified):
    net = amplified(UNetDiscriminator(num_features=4))
    for conv in spectral_convs(net):
        conv.iterate(500)
        matrix = conv.weight.flatten(1)
        values = torch.linalg.svdvals(matrix / (conv.u @ matrix @ conv.v))
        assert values[0].item() == pytest.approx(1, abs=1e-3)
        assert values[-1] < 0.9


def test_a_spectral_convolution_is_torchs():
    """With the same singular vectors, output and gradient are those of torch's parametrization."""
    ours, theirs = SpectralConv(6, 10, 4, stride=2), nn.Conv2d(6, 10, 4, stride=2, padding=1, bias=False)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
    spectral_norm(theirs).eval()  # else it iterates with each look at its weight
    theirs.parametrizations.weight[0]._u.copy_(ours.u)
    theirs.parametrizations.weight[0]._v.copy_(ours.v)
    x = torch.randn(2, 6, 12, 12)
    y = torch.randn(2, 10, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    (ours(x) * y).sum().backward()
    (theirs(x) * y).sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original.grad)

    theirs.train()
    theirs(x)
    ours.iterate()
    torch.testing.assert_close(ours.u, theirs.parametrizations.weight[0]._u)
    torch.testing.assert_close(ours.v, theirs.parametrizations.weight[0]._v)


def test_judging_changes_nothing_in_the_judge():
    for net in (UNetDiscriminator(num_features=4), VGGDiscriminator(32, num_features=4)):
        before = {name: value.clone() for name, value in net.train().state_dict().items()}
        x = torch.rand(2, 3, 32, 32)
        first = net(x)
        assert torch.equal(net(x), first)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_norm_of_a_unet_in_bf16_is_that_in_fp32():
    """The division by the singular value is not rounded to 8 bits: it would be off by up to 0.4 %."""
    conv = SpectralConv(16, 16, 3)
    with torch.no_grad():
        conv.weight.mul_(1 / 3)
        seen = []
        original = F.conv2d
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            patch.setattr(F, "conv2d", lambda x, w, **kwargs: seen.append(w) or original(x, w, **kwargs))
            conv(torch.rand(1, 16, 8, 8))
        conv(torch.rand(1, 16, 8, 8))
        matrix = conv.weight.flatten(1)
        torch.testing.assert_close(seen[0], conv.weight / (conv.u @ matrix @ conv.v))


def test_discriminators_are_no_networks_of_a_task():
    assert not [name for name, entry in MODELS.items() if "discriminator" in f"{name} {entry.target}"]

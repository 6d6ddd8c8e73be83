from __future__ import annotations

import pytest
import torch

from densekit.cards import Card
from densekit.checkpoint import save_model
from densekit.encoders import encoder_in, find_encoder
from densekit.errors import ConfigError
from densekit.models import create_model
from tests.encoders.conftest import TINY

SEG = {"num_init_features": 8, "growth_rate": 4, "num_pools": 2, "num_layers": 2, "drop_rate": 0.0}
STATISTICS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}


def listened(net, modules, x):
    """Returns what modules make while a network runs."""
    made = {}
    for name in modules:
        net.get_submodule(name).register_forward_hook(lambda *args, name=name: made.__setitem__(name, args[-1].clone()))
    with torch.no_grad():
        net.eval()(x)
    return [made[name] for name in modules]


def test_a_classifiers_encoder_gives_what_goes_on_inside_it(lived):
    arguments = {**TINY, **STATISTICS, "num_classes": 3}
    net = lived(create_model("densenet", **arguments))
    found = encoder_in(net, Card("encoder", "densenet", arguments))
    x = torch.rand(2, 3, 64, 96)
    assert (found.name, found.indices) == ("densenet", (0, 1, 2, 3, 4))
    with torch.no_grad():
        features = found.encoder((0, 4)).eval()(x)
    for feature, expected in zip(features, listened(net, ["features.relu0", "features.relu5"], x), strict=True):
        torch.testing.assert_close(feature, expected, rtol=0, atol=0)


def test_an_fc_densenets_encoder_is_its_way_down(lived):
    net = lived(create_model("fc_densenet", num_classes=2, **SEG, **STATISTICS))
    found = encoder_in(net, Card("seg", "fc_densenet", {"num_classes": 2, **SEG, **STATISTICS}))
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        features = found.encoder((0, 1)).eval()(x)
    for feature, expected in zip(features, listened(net, ["down_blocks.0", "down_blocks.1"], x), strict=True):
        torch.testing.assert_close(feature, expected)


@pytest.mark.parametrize(("decoder", "taps"), [("fpn", (0, 1, 2, 3, 4)), ("pspnet", (0, 1, 2))])
def test_the_encoder_under_a_decoder_is_found_as_deep_as_it_goes(decoder, taps, lived):
    given = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "num_init_features": 8, **STATISTICS}
    net = lived(create_model(decoder, num_classes=2, **given))
    found = encoder_in(net, Card("seg", decoder, {"num_classes": 2, **given}))
    assert (found.name, found.indices) == ("densenet121", taps)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = found.encoder(taps).eval()(x)
        expected = net.eval().encoder((x - net.mean) / net.std)[1:]
    for feature, other in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, other)
    if decoder == "pspnet":
        with pytest.raises(ConfigError, match="densenet121: no tap 4; there are 0, 1, 2"):
            found.encoder((4,))


def test_an_encoder_is_found_in_a_file(tmp_path, lived):
    net = lived(create_model("densenet", **TINY))
    save_model(tmp_path / "a.safetensors", net, Card("encoder", "densenet", TINY))
    found = find_encoder(str(tmp_path / "a.safetensors"))
    assert found.card.model == "densenet"
    assert torch.equal(found.encoder((4,)).features.conv0.weight, net.features.conv0.weight)


def test_a_seed_decides_random_weights_and_leaves_the_state_alone(tiny):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    weights = [find_encoder(tiny, seed=seed).encoder((1,)).features.conv0.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_random_weights_have_to_be_asked_for(tiny):
    with pytest.raises(ConfigError, match="densenet_tiny is an encoder without weights; give a file of weights, or"):
        find_encoder(tiny)
    with pytest.raises(ConfigError, match="rdn-tiny-x2: random weights are for names of densekit encoder list alone"):
        find_encoder("rdn-tiny-x2", seed=1)


def test_a_network_without_an_encoder_is_named():
    with pytest.raises(ConfigError, match="rdn has no encoder; those that have one: densekit encoder list"):
        find_encoder("rdn-tiny-x2")

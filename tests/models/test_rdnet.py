from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from densekit.blocks import fit_memory, saved_bytes, set_memory
from densekit.cards import Card
from densekit.checkpoint import load_model, save_model
from densekit.errors import ConfigError
from densekit.models import create_encoder, create_model
from densekit.models.rdnet_stages import Layer

SMALL = {
    "growth_rate": (8, 8, 16, 8),
    "block_config": (2, 1, 2, 1),
    "strides": (1, 2, 2, 1),
    "num_init_features": 16,
    "layer_scale": 1.0,
}
PLAIN = {**SMALL, "squeeze_from": 4}


def randomize(net: nn.Module) -> nn.Module:
    """Gives every norm, bias and factor a value of its own, as training would; the factors start with 1e-6."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return net.eval()


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return randomize(timm.create_model("rdnet_tiny"))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("tiny", 23_863_008), ("small", 50_436_448), ("base", 87_451_096), ("large", 186_269_632)],
)
def test_the_papers_nets_have_the_parameters_and_the_keys_of_timm(name, parameters, on_meta):
    ours, peer = on_meta(create_model, f"rdnet_{name}"), on_meta(timm.create_model, f"rdnet_{name}")
    assert sum(p.numel() for p in ours.parameters()) == parameters
    shapes = [(key, tensor.shape) for key, tensor in ours.state_dict().items()]
    assert shapes == [(key, tensor.shape) for key, tensor in peer.state_dict().items()]


@pytest.mark.parametrize("size", [(96, 64), (65, 90)])
def test_timm_weights_load_strictly_and_give_the_same_logits_and_features(theirs, size):
    net = create_model("rdnet_tiny").eval()
    net.load_state_dict(theirs.state_dict(), strict=True)
    encoder = create_encoder("rdnet_tiny").eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("head.")}
    encoder.load_state_dict(state, strict=True)
    x = torch.rand(2, 3, *size)
    with torch.inference_mode():
        expected, features = theirs.forward_intermediates(x)
        logits = theirs.forward_head(expected)
        assert logits.std() > 0.1
        torch.testing.assert_close(net(x), logits, rtol=1e-5, atol=1e-5)
        for mine, peer in zip(encoder(x), features, strict=True):
            torch.testing.assert_close(mine, peer, rtol=1e-5, atol=1e-5)
    assert encoder.channels == tuple(info["num_chs"] for info in theirs.feature_info) == (256, 440, 744, 1040)
    assert encoder.reductions == (4, 8, 16, 32)


def test_a_net_made_ready_for_prediction_gives_the_same(theirs):
    net = create_model("rdnet_tiny").eval()
    net.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(net.optimize()(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("output_stride", "reductions"), [(32, (4, 4, 8, 16)), (16, (4, 4, 8, 16)), (8, (4, 4, 8, 8))])
def test_every_tap_has_the_channels_and_the_reduction_it_promises(output_stride, reductions):
    encoder = create_encoder("rdnet_tiny", out_indices=range(4), output_stride=output_stride, in_channels=4, **SMALL)
    assert encoder.reductions == reductions
    assert encoder.multiple_of == reductions[-1]
    for y, channels, reduction in zip(encoder(torch.rand(1, 4, 64, 96)), encoder.channels, reductions, strict=True):
        assert y.shape == (1, channels, 64 // reduction, 96 // reduction)


def test_without_squeezes_a_dilated_net_makes_at_every_fourth_pixel_what_the_plain_one_makes():
    arguments = {
        "growth_rate": (8,) * 4, "block_config": (1,) * 4, "strides": (1, 2, 2, 2), "squeeze_from": 4,
        "num_init_features": 16,
    }  # fmt: skip
    plain = randomize(create_encoder("rdnet_tiny", **arguments))
    dilated = create_encoder("rdnet_tiny", output_stride=8, **arguments).eval()
    dilated.load_state_dict(plain.state_dict(), strict=True)
    assert (plain.reductions, dilated.reductions) == ((4, 8, 16, 32), (4, 8, 8, 8))
    x = torch.rand(1, 3, 128, 192)
    with torch.inference_mode():
        for coarse, fine, step in zip(plain(x), dilated(x), (1, 1, 2, 4), strict=True):
            torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=1e-5, atol=1e-5)
            assert coarse.std() > 0.1


@pytest.mark.parametrize(
    ("out_indices", "last"),
    [((0,), "stem.1.bias"), ((1,), "dense_stages.0"), ((0, 2), "dense_stages.1"), ((2, 3), "dense_stages.3")],
)
def test_stages_that_no_tap_needs_are_not_built(out_indices, last, dead_parameters):
    encoder = create_encoder("rdnet_tiny", out_indices=out_indices, **SMALL)
    assert [name for name, _ in encoder.named_parameters()][-1].startswith(last)
    assert dead_parameters(encoder, torch.rand(2, 3, 64, 64)) == []
    whole = create_model("rdnet_tiny", **SMALL).state_dict()
    encoder.load_state_dict({key: whole[key] for key in encoder.state_dict()}, strict=True)


def test_every_parameter_of_rdnet_tiny_gets_a_gradient(dead_parameters):
    net = create_model("rdnet_tiny", in_channels=1, num_classes=7, drop_path_rate=0.1)
    assert dead_parameters(net, torch.rand(4, 1, 64, 64)) == []


@pytest.mark.parametrize("output_stride", [32, 8])
def test_a_feature_depends_on_nothing_beyond_the_receptive_field(output_stride, reach):
    arguments = {
        "growth_rate": (8,) * 3, "block_config": (1,) * 3, "strides": (1, 2, 2), "squeeze_from": 3,
        "num_init_features": 16,
    }  # fmt: skip
    encoder = create_encoder("rdnet_tiny", output_stride=output_stride, **arguments)
    assert 0.8 * encoder.receptive_field < reach(encoder, in_channels=3, size=384) <= encoder.receptive_field


def test_with_squeezes_a_feature_sees_the_whole_image_and_there_is_no_receptive_field():
    encoder = create_encoder("rdnet_tiny", out_indices=(2, 3), **SMALL).eval().double()
    assert encoder.receptive_field is None
    assert create_model("rdnet_tiny", **SMALL).receptive_field is None
    assert create_model("rdnet_tiny", **PLAIN).receptive_field == 3 + 4 * 3 * 2 + 4 + 8 * 3 + 8 + 16 * 3 * 3
    x = torch.rand(1, 3, 512, 512, dtype=torch.float64)
    changed = x.clone()
    changed[..., :4, :4] += 1
    (shallow, deep), (shallow2, deep2) = encoder(x), encoder(changed)
    assert torch.equal(shallow[..., -1, -1], shallow2[..., -1, -1])
    assert not torch.equal(deep[..., -1, -1], deep2[..., -1, -1])


def test_drop_path_makes_whole_images_nothing_more_often_the_deeper_the_layer():
    net = create_model("rdnet_tiny", drop_path_rate=0.5, **SMALL)
    layers = [module for module in net.modules() if isinstance(module, Layer)]
    assert [layer.drop_path for layer in layers] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    layer = layers[-1].train()
    channels = layer.layers["layers"][0].in_channels
    x = torch.randn(1, channels, 4, 4).expand(4000, -1, -1, -1)
    with torch.no_grad():
        made, expected = layer(x), layer.eval()(x[:1])
    kept = made.flatten(1).any(1)
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(made[kept], (2 * expected).expand(int(kept.sum()), -1, -1, -1))


def test_dropout_falls_behind_every_layer(monkeypatch):
    dropped = []
    original = F.dropout
    monkeypatch.setattr(F, "dropout", lambda x, p, training: dropped.append(p) or original(x, p, training))
    create_model("rdnet_tiny", drop_rate=0.2, **SMALL)(torch.rand(1, 3, 32, 32))
    assert dropped == [0.2] * 6


@pytest.mark.parametrize("policy", ["balanced", "lean", "min", "400KB"])
def test_it_learns_the_same_whatever_the_memory_policy(policy):
    plain = create_encoder("rdnet_tiny", out_indices=(1, 3), drop_rate=0.1, drop_path_rate=0.3, **SMALL).double()
    engine = copy.deepcopy(plain)
    set_memory(engine, policy)
    x, results = torch.rand(2, 3, 32, 48, dtype=torch.float64), []
    for net in (plain.train(), engine.train()):
        torch.manual_seed(3)
        sum(y.square().sum() for y in net(x)).backward()
        results.append([p.grad for p in net.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_the_least_memory_is_a_small_part_of_the_most_and_a_budget_is_kept():
    with torch.device("meta"):
        net = create_model("rdnet_tiny").train()
        x, kept = torch.empty(8, 3, 224, 224), {}
        for policy in ("speed", "min"):
            set_memory(net, policy)
            kept[policy] = saved_bytes(net, x) / 2**20
    assert kept["speed"] == pytest.approx(1118, abs=1)
    assert kept["min"] == pytest.approx(69, abs=1)
    plan = fit_memory(net, (8, 3, 224, 224), "800MiB")
    assert 400 * 2**20 < plan.expected <= 800 * 2**20


def test_statistics_are_subtracted_and_divided_inside_and_are_not_in_the_state():
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    plain = create_model("rdnet_tiny", **SMALL).eval()
    normalizing = create_model("rdnet_tiny", mean=mean, std=std, **SMALL).eval()
    assert normalizing.state_dict().keys() == plain.state_dict().keys()
    normalizing.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 32, 32)
    normalized = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        assert torch.allclose(normalizing(x), plain(normalized), atol=1e-6)


def test_a_checkpoint_rebuilds_the_network(tmp_path):
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
    net = randomize(create_model("rdnet_tiny", num_classes=5, **arguments))
    save_model(tmp_path / "net.safetensors", net, Card("encoder", "rdnet_tiny", {"num_classes": 5, **arguments}))
    loaded, _ = load_model(tmp_path / "net.safetensors")
    x = torch.rand(1, 3, 40, 40)
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(x), net(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_indices": (1, 4)}, "out_indices=(1, 4): expected ascending numbers from 0 (stem) to 3"),
        ({"output_stride": 4}, "output_stride=4: expected 8, 16 or 32"),
        ({"block_config": (1, 2)}, "block_config has 2 entries: expected 4, as growth_rate has"),
        ({"strides": (1, 2)}, "strides has 2 entries: expected 4, as growth_rate has"),
        ({"strides": (2, 2, 1, 1)}, "strides=(2, 2, 1, 1): expected 1 for the first block, and 1 or 2 for each other"),
        ({"strides": (1, 2, 4, 1)}, "strides=(1, 2, 4, 1): expected 1 for the first block, and 1 or 2 for each other"),
        ({"mean": (0.5,)}, "mean has 1 values: expected 3, one for each channel"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError) as error:
        create_encoder("rdnet_tiny", **{**SMALL, **arguments})
    assert str(error.value) == message

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from densekit.errors import ConfigError
from densekit.models import create_encoder, create_model

SMALL = {"growth_rate": 4, "block_config": (2, 2, 2, 2), "bn_size": 2}


def randomize(net: nn.Module) -> nn.Module:
    """Gives every norm statistics and weights of its own, as training would."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, std=0.3)
    return net.eval()


def features_only(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key.startswith("features.")}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return randomize(torchvision.models.densenet121(weights=None))


@pytest.fixture(scope="module")
def picture():
    return torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def their_maps(theirs, picture):
    """Torchvision's feature maps by module name; their own in-place ReLUs would overwrite them, hence the copies."""
    maps: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _x, y, name=name: maps.__setitem__(name, y.clone()))
        for name, module in theirs.features.named_children()
    ]
    with torch.inference_mode():
        maps["logits"] = theirs(picture)
    for handle in handles:
        handle.remove()
    return maps


@pytest.mark.parametrize(
    ("name", "parameters", "keys"),
    [
        ("densenet121", 7_978_856, 727),
        ("densenet169", 14_149_480, 1015),
        ("densenet201", 20_013_928, 1207),
        ("densenet264", 33_337_704, 1591),
        ("densenet161", 28_681_000, 967),
    ],
)
def test_imagenet_nets_have_the_published_parameters_and_torchvisions_keys(name, parameters, keys, on_meta):
    net = on_meta(create_model, name)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == keys


def test_the_encoder_has_the_classifiers_keys_but_its_last_layer(on_meta):
    encoder, net = on_meta(create_encoder, "densenet121"), on_meta(create_model, "densenet121")
    assert list(encoder.state_dict()) == list(features_only(net.state_dict()))


def test_densenet264_with_growth_48_has_the_published_parameters(count):
    assert count(create_model, "densenet264", growth_rate=48) == 72_686_632


@pytest.mark.parametrize(
    ("name", "depth", "growth_rate", "parameters"),
    [
        ("densenet_cifar", 40, 12, 1_019_722),
        ("densenet_cifar", 100, 12, 6_979_642),
        ("densenet_cifar", 100, 24, 27_249_082),
        ("densenet_bc_cifar", 100, 12, 769_162),
        ("densenet_bc_cifar", 250, 24, 15_324_406),
        ("densenet_bc_cifar", 190, 40, 25_624_430),
        ("densenet_bc_cifar", 40, 36, 1_542_682),
        ("densenet_bc_cifar", 40, 48, 2_733_130),
        ("densenet_bc_cifar", 40, 60, 4_261_690),
    ],
)
def test_cifar_nets_have_the_papers_parameters(name, depth, growth_rate, parameters, count):
    assert count(create_model, name, depth=depth, growth_rate=growth_rate) == parameters


@pytest.mark.parametrize(("depth", "growth_rate", "millions"), [(40, 12, 1.06), (100, 12, 7.08), (100, 24, 28.07)])
def test_plain_cifar_nets_with_twice_the_growth_rate_are_those_of_the_lua_code(depth, growth_rate, millions, count):
    parameters = count(
        create_model, "densenet_cifar", depth=depth, growth_rate=growth_rate, num_init_features=2 * growth_rate
    )
    assert round(parameters / 1e6, 2) == millions


def test_torchvision_weights_load_strictly_and_give_the_same_logits(theirs, picture, their_maps):
    net = create_model("densenet121").eval()
    net.load_state_dict(theirs.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(net(picture), their_maps["logits"])


def test_torchvision_weights_give_the_same_features_at_every_tap(theirs, picture, their_maps):
    encoder = create_encoder("densenet121", out_indices=(0, 1, 2, 3, 4)).eval()
    encoder.load_state_dict(features_only(theirs.state_dict()), strict=True)
    blocks = theirs.features
    with torch.inference_mode():
        expected = [their_maps["relu0"]]
        expected += [
            F.relu(blocks.get_submodule(f"transition{i}.norm")(their_maps[f"denseblock{i}"])) for i in (1, 2, 3)
        ]
        expected.append(F.relu(their_maps["norm5"]))
        for ours, reference in zip(encoder(picture), expected, strict=True):
            assert torch.equal(ours, reference)


def test_timm_weights_load_strictly_and_give_the_same_logits(picture):
    theirs = randomize(timm.create_model("densenet121", pretrained=False))
    net = create_model("densenet121").eval()
    net.load_state_dict(theirs.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(net(picture), theirs(picture))


def test_raw_taps_are_timms_features(theirs, picture):
    reference = timm.create_model("densenet121", pretrained=False, features_only=True).eval()
    state = features_only(theirs.state_dict())
    reference.load_state_dict({key.replace("features.", "features_", 1): value for key, value in state.items()})
    encoder = create_encoder("densenet121", taps="raw", out_indices=(0, 1, 2, 3, 4)).eval()
    encoder.load_state_dict(state, strict=True)
    with torch.inference_mode():
        for ours, expected in zip(encoder(picture), reference(picture), strict=True):
            assert torch.equal(ours, expected)
    assert list(encoder.channels) == reference.feature_info.channels()
    assert list(encoder.reductions) == reference.feature_info.reduction()


def test_smp_taps_are_smps_features(theirs, picture):
    reference = smp.encoders.get_encoder("densenet121").eval()
    state = features_only(theirs.state_dict())
    reference.load_state_dict(dict(state))
    encoder = create_encoder("densenet121", taps="smp", out_indices=range(5)).eval()
    encoder.load_state_dict(state, strict=True)
    with torch.inference_mode():
        for ours, expected in zip(encoder(picture), reference(picture)[1:], strict=True):
            assert torch.equal(ours, expected)
        assert encoder(picture)[-1].min() < -0.5  # the one that is not rectified


@pytest.mark.parametrize("taps", ["act", "raw", "smp"])
@pytest.mark.parametrize(
    ("output_stride", "reductions"), [(32, (2, 4, 8, 16, 32)), (16, (2, 4, 8, 16, 16)), (8, (2, 4, 8, 8, 8))]
)
def test_every_tap_has_the_channels_and_the_reduction_it_promises(taps, output_stride, reductions):
    encoder = create_encoder(
        "densenet", out_indices=range(5), taps=taps, output_stride=output_stride, in_channels=4, **SMALL
    ).eval()
    assert encoder.reductions == reductions
    assert encoder.multiple_of == reductions[-1]
    for y, channels, reduction in zip(encoder(torch.rand(1, 4, 64, 96)), encoder.channels, reductions, strict=True):
        assert y.shape == (1, channels, 64 // reduction, 96 // reduction)


def test_densenet121_has_the_same_weights_at_every_output_stride(theirs, picture, their_maps):
    state = features_only(theirs.state_dict())
    for output_stride in (8, 16):
        dilated = create_encoder("densenet121", out_indices=(2, 4), output_stride=output_stride).eval()
        dilated.load_state_dict(state, strict=True)
        with torch.inference_mode():
            shallow, deep = dilated(picture)
        assert shallow.shape == (2, 512, 12, 8)
        assert deep.shape == (2, 1024, 96 // output_stride, 64 // output_stride)
        assert dilated.channels == (512, 1024)
        assert dilated.reductions == (8, output_stride)


def test_a_dilated_layer_sees_the_same_samples_of_a_finer_grid():
    # One block after the dropped pool, its 3x3 dilated by 2: on a map that repeats each pixel 2x2 it computes at every
    # second place what the pooled net computes on the pixels.
    plain = randomize(create_encoder("densenet", out_indices=(3,), growth_rate=4, block_config=(1, 1, 1)))
    dilated = create_encoder(
        "densenet", out_indices=(3,), growth_rate=4, block_config=(1, 1, 1), output_stride=8
    ).eval()
    dilated.load_state_dict(plain.state_dict(), strict=True)
    pooled = nn.Sequential(plain.features.transition2, plain.features.denseblock3)
    kept = nn.Sequential(dilated.features.transition2, dilated.features.denseblock3)
    x = torch.rand(1, plain.features.denseblock2.out_channels, 9, 9).repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.inference_mode():
        assert torch.allclose(kept(x)[..., ::2, ::2], pooled(x), atol=1e-6)


@pytest.mark.parametrize(
    ("out_indices", "taps", "last"),
    [
        ((0,), "act", "norm0"),
        ((0, 1), "act", "transition1.norm"),
        ((0, 1), "raw", "denseblock1"),
        ((2,), "act", "transition2.norm"),
        ((1, 3), "raw", "denseblock3"),
        ((4,), "raw", "norm5"),
        ((0, 2), "smp", "transition2.norm"),
        ((4,), "smp", "norm5"),
        (None, "act", "norm5"),
    ],
)
def test_stages_that_no_tap_needs_are_not_built(out_indices, taps, last, dead_parameters):
    encoder = create_encoder("densenet", out_indices=out_indices, taps=taps, **SMALL)
    names = [name.removeprefix("features.") for name, _ in encoder.named_parameters()]
    assert names[-1].startswith(last)
    assert dead_parameters(encoder, torch.rand(4, 3, 64, 64)) == []
    whole = create_model("densenet", **SMALL).state_dict()
    encoder.load_state_dict({key: whole[key] for key in encoder.state_dict()}, strict=True)


@pytest.mark.parametrize("name", ["densenet_cifar", "densenet_bc_cifar"])
def test_cifar_nets_keep_the_full_size_up_to_their_first_transition(name, dead_parameters):
    encoder = create_encoder(name, depth=16, growth_rate=4, out_indices=(0, 1, 2, 3))
    assert encoder.reductions == (1, 1, 2, 4)
    x = torch.rand(4, 3, 32, 24)
    assert [tuple(y.shape[-2:]) for y in encoder(x)] == [(32, 24), (32, 24), (16, 12), (8, 6)]
    assert dead_parameters(encoder, x) == []
    net = create_model(name, depth=16, growth_rate=4)
    assert net(x).shape == (4, 10)
    assert dead_parameters(net, x) == []


def test_every_parameter_of_densenet121_gets_a_gradient(dead_parameters):
    assert dead_parameters(create_model("densenet121", in_channels=1, num_classes=7), torch.rand(4, 1, 64, 64)) == []


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 131)])
def test_the_classifier_takes_odd_and_small_sizes(size):
    net = create_model("densenet", num_classes=5, **SMALL).eval()
    assert net(torch.rand(1, 3, *size)).shape == (1, 5)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_a_feature_depends_on_nothing_beyond_the_receptive_field(output_stride, reach):
    encoder = create_encoder(
        "densenet", growth_rate=2, block_config=(1, 1, 2, 1), output_stride=output_stride, out_indices=(4,)
    )
    # Windows of stride 2 lean to one side, so that some of the radius is never used.
    assert 0.8 * encoder.receptive_field < reach(encoder, in_channels=3, size=512) <= encoder.receptive_field


def test_the_classifier_and_the_encoder_have_the_same_receptive_field(on_meta):
    net, encoder = on_meta(create_model, "densenet121"), on_meta(create_encoder, "densenet121")
    # 3 + 2 (max pool) + 4 * 6 + 4 + 8 * 12 + 8 + 16 * 24 + 16 + 32 * 16
    assert net.receptive_field == encoder.receptive_field == 1049
    assert (net.scale, net.multiple_of) == (1, 32)


@pytest.mark.parametrize(("dropout", "maps"), [("paper", [8, 4, 8, 4, 8, 8, 4, 8, 4]), ("torchvision", [4, 4, 4, 4])])
def test_dropout_follows_every_convolution_but_the_first_or_the_3x3_only(dropout, maps, monkeypatch):
    dropped = []
    original = F.dropout

    def spy(x, p, training):
        if p > 0 and training:
            dropped.append(x.shape[1])
        return original(x, p, training)

    monkeypatch.setattr(F, "dropout", spy)
    net = create_model(
        "densenet", growth_rate=4, block_config=(2, 2), bn_size=2, drop_rate=0.2, dropout=dropout, num_classes=2
    )
    net(torch.rand(2, 3, 32, 32))
    assert dropped == maps
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 10
    dropped.clear()
    net.eval()(torch.rand(2, 3, 32, 32))
    assert dropped == []


def test_weights_start_with_the_papers_deviation():
    net = create_model("densenet121", num_classes=10)
    conv = net.features.denseblock1.denselayer1.conv2  # 3x3 to 32 maps: sqrt(2 / (9 * 32))
    assert conv.weight.std().item() == pytest.approx((2 / 288) ** 0.5, rel=0.02)
    assert not net.classifier.bias.any()


def test_statistics_are_subtracted_and_divided_inside_and_are_not_in_the_state():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain, normalizing = create_model("densenet", **SMALL), create_model("densenet", mean=mean, std=std, **SMALL)
    assert normalizing.state_dict().keys() == plain.state_dict().keys()
    normalizing.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 64, 64)
    normalized = torchvision.transforms.functional.normalize(x, mean, std)
    with torch.inference_mode():
        assert torch.allclose(normalizing.eval()(x), plain.eval()(normalized), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_indices": (3, 1)}, "out_indices=(3, 1): expected ascending numbers from 0 (stem) to 4"),
        ({"out_indices": ()}, "out_indices=(): expected ascending numbers from 0 (stem) to 4"),
        ({"out_indices": (1, 5)}, "out_indices=(1, 5): expected ascending numbers from 0 (stem) to 4"),
        ({"taps": "post"}, "taps='post': expected 'act', 'raw' or 'smp'"),
        ({"output_stride": 4}, "output_stride=4: expected 8, 16 or 32"),
        ({"stem": "deep"}, "stem='deep': expected 'imagenet' or 'cifar'"),
        ({"depth": 42}, "depth=42: a net with bottleneck has 6 n + 4 layers; the nearest is 40"),
        ({"depth": 42, "bn_size": None}, "depth=42: a net without bottleneck has 3 n + 4 layers; the nearest is 43"),
        ({"mean": (0.5,)}, "mean has 1 values: expected 3, one for each channel"),
        (
            {"dropout": "papers"},
            "dropout='papers': not a dropout placement; did you mean 'paper'? (known: paper, torchvision)",
        ),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError) as error:
        create_encoder("densenet121", **arguments)
    assert str(error.value) == message

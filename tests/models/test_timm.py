from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from timm.models import load_state_dict
from torch import nn

import densekit.models.timm as adapter
from densekit.blocks import saved_bytes
from densekit.cards import Card
from densekit.checkpoint import save_model
from densekit.errors import ConfigError
from densekit.models import MODELS, create_encoder, create_model

DENSE = {"growth_rate": 4, "block_config": (2, 2, 2, 2), "bn_size": 2}
RDNET = {"growth_rate": (8, 8, 16), "block_config": (1, 1, 1), "strides": (1, 2, 2), "num_init_features": 16}
FC = {"growth_rate": 4, "num_layers": 1, "num_pools": 3, "num_init_features": 8}
SMALL = {"densekit_densenet121": DENSE, "densekit_rdnet_tiny": RDNET, "densekit_fc_densenet56": FC}
names = pytest.mark.parametrize("name", SMALL)


def randomize(net):
    """Gives norms, biases and factors values of their own, as training would."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return net.eval()


def test_every_encoder_has_a_name_there():
    assert set(timm.list_models("densekit_*")) == {f"densekit_{name}" for name, e in MODELS.items() if e.encoder}
    assert adapter.densekit_rdnet_tiny.__name__ in adapter.__all__
    before = timm.list_models("densekit_*")
    adapter.register()
    assert timm.list_models("densekit_*") == before


@pytest.mark.parametrize(("name", "taps"), [("densenet121", {"taps": "raw"}), ("rdnet_tiny", {})])
def test_weights_of_timm_give_its_own_logits_and_features(name, taps):
    theirs = randomize(timm.create_model(name))
    ours = timm.create_model(f"densekit_{name}", **taps).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        deepest, features = ours.forward_intermediates(x)
        for mine, other in zip(features, theirs.forward_intermediates(x)[1], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        assert torch.equal(deepest, ours.forward_features(x))
        for pre_logits in (False, True):
            mine, other = (net.forward_head(net.forward_features(x), pre_logits=pre_logits) for net in (ours, theirs))
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    for key in ("num_chs", "reduction"):
        assert [info[key] for info in ours.feature_info] == [info[key] for info in theirs.feature_info]


def test_by_default_features_of_a_densenet_are_those_of_our_encoder():
    features = timm.create_model("densekit_densenet121", features_only=True, **DENSE).eval()
    encoder = create_encoder("densenet", out_indices=range(5), **DENSE)
    encoder.load_state_dict(features.model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for mine, other in zip(features(x), encoder.eval()(x), strict=True):
            assert torch.equal(mine, other)


@names
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("out_indices", [None, (0, 2), (-1,), 2])
def test_features_have_the_channels_and_reductions_they_announce(name, output_stride, out_indices, dead_parameters):
    given = {} if out_indices is None else {"out_indices": out_indices}
    net = timm.create_model(
        name, features_only=True, in_chans=4, output_stride=output_stride, **given, **SMALL[name]
    ).eval()
    x = torch.rand(2, 4, 64, 96)
    features = net(x)
    info = net.feature_info
    assert len(features) == (len(info.info) if out_indices is None else 2 if out_indices != (-1,) else 1)
    for feature, channels, reduction in zip(features, info.channels(), info.reduction(), strict=True):
        assert feature.shape == (2, channels, 64 // reduction, 96 // reduction)
        assert reduction <= output_stride
    if out_indices != (-1,):
        assert dead_parameters(net, x) == []


def test_what_no_feature_needs_is_not_built(count):
    build = {"model_name": "densekit_densenet121", "features_only": True}
    assert count(timm.create_model, **build) == 6_953_856
    part = count(timm.create_model, **build, out_indices=(1, 2))
    assert part == count(create_encoder, "densenet121", out_indices=(1, 2)) == 1_298_560
    assert (
        count(timm.create_model, "densekit_rdnet_tiny")
        - count(timm.create_model, "densekit_rdnet_tiny", features_only=True)
        == 2 * 1040 + 1040 * 1000 + 1000
    )


@names
def test_intermediates_are_chosen_by_number(name):
    net = timm.create_model(name, **SMALL[name]).eval()
    x = torch.rand(1, 3, 64, 64)
    everything = net.forward_intermediates(x, intermediates_only=True)
    assert len(everything) == len(net.feature_info)
    for indices, expected in ((2, everything[-2:]), ([0, -1], [everything[0], everything[-1]])):
        found = net.forward_intermediates(x, indices=indices, stop_early=True, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@names
def test_a_classifier_can_be_replaced_and_removed(name):
    net = timm.create_model(name, num_classes=5, drop_rate=0.1, **SMALL[name]).eval()
    x = torch.rand(2, 3, 64, 64)
    assert net(x).shape == (2, 5)
    assert net.get_classifier().out_features == net.num_classes == 5
    net.reset_classifier(3, "max")
    assert net(x).shape == (2, 3)
    net.reset_classifier(0)
    assert isinstance(net.get_classifier(), nn.Identity)
    assert net(x).shape == (2, net.num_features)
    assert net.num_features == net.head_hidden_size == net.feature_info[-1]["num_chs"]
    deepest = net.forward_features(x)
    assert net.forward_head(deepest, pre_logits=True).shape == (2, net.num_features)


def test_pooling_as_timm_has_it_widens_the_classifier():
    net = timm.create_model("densekit_densenet121", num_classes=3, global_pool="catavgmax", **DENSE)
    assert net.get_classifier().in_features == net.head_hidden_size == 2 * net.num_features
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_dropout_rates_go_where_timm_puts_them():
    net = timm.create_model("densekit_densenet121", drop_rate=0.3, proj_drop_rate=0.2, **DENSE)
    assert net.head_drop.p == 0.3
    assert net.features.denseblock1.denselayer1.drop_rate == 0.2
    assert timm.create_model("densekit_fc_densenet56", **FC).down_blocks[0].denselayer1.drop_rate == 0.2  # its own
    assert timm.create_model("densekit_rdnet_tiny", drop_rate=0.3, **RDNET).head.drop.p == 0.3
    assert timm.create_model("densekit_fc_densenet56", proj_drop_rate=0, **FC).down_blocks[0].denselayer1.drop_rate == 0


@names
@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointing_keeps_less_and_learns_the_same_with_the_same_statistics(name, features_only):
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        net = timm.create_model(name, features_only=features_only, num_classes=3, **SMALL[name]).double().train()
        net.set_grad_checkpointing(enable)
        x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
        for seed in range(2):
            torch.manual_seed(seed)
            net.zero_grad()
            outputs = net(x) if features_only else [net(x)]
            sum(y.square().mean() for y in outputs).backward()
        kept = saved_bytes(net, x)
        results.append(({key: p.grad for key, p in net.named_parameters()}, dict(net.named_buffers()), kept))
    (plain, statistics, most), (engine, found, least) = results
    assert least < 0.75 * most
    for key, gradient in plain.items():
        torch.testing.assert_close(engine[key], gradient, rtol=1e-9, atol=1e-10)
    assert all(torch.equal(value, found[key]) for key, value in statistics.items() if "running" not in key)
    for key in statistics:
        torch.testing.assert_close(found[key], statistics[key], rtol=1e-12, atol=0)


class TestPretrained:
    def test_a_file_of_ours_is_loaded(self, tmp_path):
        net = randomize(create_model("densenet121", num_classes=5, **DENSE))
        save_model(tmp_path / "net.safetensors", net, Card("encoder", "densenet121", {"num_classes": 5}))
        overlay = {"file": str(tmp_path / "net.safetensors"), "num_classes": 5}
        loaded = timm.create_model(
            "densekit_densenet121", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, **DENSE
        ).eval()
        x = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(loaded(x), net(x), rtol=1e-5, atol=1e-6)

    def test_features_classes_and_channels_of_another_number_take_what_fits(self, tmp_path):
        theirs = randomize(timm.create_model("rdnet_tiny"))
        save_file(theirs.state_dict(), tmp_path / "net.safetensors")
        given = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "net.safetensors")}}
        features = timm.create_model("densekit_rdnet_tiny", features_only=True, out_indices=(0, 1), **given).eval()
        x = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            for mine, other in zip(features(x), theirs.forward_intermediates(x)[1][:2], strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        wide = timm.create_model("densekit_rdnet_tiny", num_classes=3, in_chans=4, **given)
        assert wide.stem[0].in_channels == 4
        assert torch.equal(wide.head.norm.weight, theirs.head.norm.weight)

    def test_the_way_down_of_a_whole_fc_densenet_is_loaded(self, tmp_path):
        whole = randomize(create_model("fc_densenet56", **FC))
        torch.save(whole.state_dict(), tmp_path / "net.pth")
        overlay = {"file": str(tmp_path / "net.pth")}
        net = timm.create_model("densekit_fc_densenet56", pretrained=True, pretrained_cfg_overlay=overlay, **FC)
        assert torch.equal(net.bottleneck.denselayer1.conv1.weight, whole.bottleneck.denselayer1.conv1.weight)
        assert load_state_dict(tmp_path / "net.pth").keys() > net.state_dict().keys()

    def test_weights_of_another_network_are_refused(self, tmp_path):
        save_file(create_model("densenet169").state_dict(), tmp_path / "net.safetensors")
        overlay = {"file": str(tmp_path / "net.safetensors")}
        with pytest.raises(RuntimeError, match="Unexpected key"):
            timm.create_model("densekit_densenet121", pretrained=True, pretrained_cfg_overlay=overlay)

    def test_without_a_file_the_weights_are_timms_own(self, monkeypatch):
        theirs = timm.create_model("densenet121")
        asked = []

        def fetch(name, **_):
            asked.append(name)
            return theirs.state_dict()

        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
        ours = timm.create_model("densekit_densenet121.tv_in1k", pretrained=True)
        assert asked == ["timm/densenet121.tv_in1k"]
        assert torch.equal(ours.classifier.weight, theirs.classifier.weight)
        assert timm.get_pretrained_cfg("densekit_rdnet_base").hf_hub_id == "naver-ai/rdnet_base.nv_in1k"

    def test_what_has_no_weights_says_so(self):
        assert not timm.models.is_model_pretrained("densekit_densenet264")
        with pytest.raises(RuntimeError, match="No pretrained weights exist for densekit_densenet264"):
            timm.create_model("densekit_densenet264", pretrained=True, **DENSE)

    def test_pictures_are_prepared_as_for_timms_own(self):
        net = timm.create_model("densekit_densenet121", **DENSE)
        assert timm.data.resolve_data_config(model=net)["mean"] == (0.485, 0.456, 0.406)
        assert net.pretrained_cfg["first_conv"] == "features.conv0"
        small = timm.create_model("densekit_densenet_cifar", depth=10)
        assert timm.data.resolve_data_config(model=small)["input_size"] == (3, 32, 32)
        assert small.num_classes == 10


@pytest.mark.parametrize("name", ["densenet121", "rdnet_tiny", "fc_densenet56"])
def test_smp_takes_them_by_its_universal_encoder(name):
    small = SMALL[f"densekit_{name}"]
    small = {key: value for key, value in small.items() if key not in ("num_pools", "strides")}
    if name == "rdnet_tiny":
        small = {"growth_rate": (8,) * 7, "block_config": (1,) * 7}
    net = smp.DeepLabV3Plus(
        f"tu-densekit_{name}", encoder_weights=None, in_channels=4, classes=2, decoder_channels=8, **small
    )
    assert net.encoder.output_stride == 16
    assert net(torch.rand(2, 4, 64, 96)).shape == (2, 2, 64, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_stride": 4}, "output_stride=4: expected 8, 16 or 32"),
        ({"taps": "last"}, "taps='last': expected 'act', 'raw' or 'smp'"),
        ({"features_only": True, "out_indices": (-6,)}, "out_indices=(-6,): expected some of the 5 features 0 to 4"),
        ({"features_only": True, "out_indices": 6}, "out_indices=6: expected some of the 5 features 0 to 4"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError) as error:
        timm.create_model("densekit_densenet121", **DENSE, **arguments)
    assert str(error.value) == message


def test_channels_last_lists_are_refused():
    net = timm.create_model("densekit_densenet121", **DENSE)
    with pytest.raises(ConfigError, match="output_fmt='NHWC': expected 'NCHW'"):
        net.forward_intermediates(torch.rand(1, 3, 32, 32), output_fmt="NHWC")

"""Our encoders in SMP's own table."""

from __future__ import annotations

import re

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import nn

from densekit.blocks import set_memory
from densekit.errors import ConfigError
from densekit.models.smp import SmpDenseNet, encoder_names, register


def narrow(model):
    """The arguments that make a decoder small."""
    return {"decoder_pyramid_channels": 16} if model is smp.FPN else {"decoder_channels": (16, 8, 8, 8, 8)}


def randomized(net):
    """A network whose batch norms have statistics of their own, for prediction."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def weight_of(encoder):
    return encoder.features.denseblock2.denselayer3.conv1.weight


def test_every_encoder_has_a_name_there():
    names = [name for name in smp.encoders.encoders if name.startswith("densekit-")]
    assert {name.removesuffix("-smp") for name in names} == {f"densekit-{name}" for name in encoder_names()}
    assert {"densekit-densenet264", "densekit-rdnet_large", "densekit-fc_densenet103"} <= {*names}
    assert "densekit-densenet121-smp" in names
    assert "densekit-densenet_cifar" not in names


def test_registering_again_changes_nothing():
    before = dict(smp.encoders.encoders)
    register()
    assert smp.encoders.encoders == before


@pytest.mark.parametrize(
    ("name", "least"), [("densenet121", 1), ("densenet121-smp", 1), ("rdnet_tiny", 2), ("fc_densenet56", 1)]
)
def test_every_depth_gives_the_channels_that_it_announces(name, least):
    x = torch.rand(1, 3, 64, 96)
    for depth in range(least, 6):
        encoder = smp.encoders.get_encoder(f"densekit-{name}", depth=depth, output_stride=16).eval()
        features = encoder(x)
        assert [feature.shape[1] for feature in features] == encoder.out_channels
        assert len(features) == depth + 1
        assert encoder.output_stride == min(16, 2**depth) == 96 // features[-1].shape[-1]
        assert [64 // feature.shape[-2] for feature in features] == [min(2**i, 16) for i in range(depth + 1)]


@pytest.mark.parametrize("in_channels", [1, 2, 4, 8])
def test_images_of_other_channels_get_the_kernels_that_smp_would_make(in_channels):
    peer = smp.encoders.get_encoder("densenet121").eval()
    ours = SmpDenseNet().eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    for encoder in (ours, peer):
        encoder.set_in_channels(in_channels, pretrained=True)
    assert torch.equal(ours.features.conv0.weight, peer.features.conv0.weight)
    x = torch.rand(1, in_channels, 32, 32)
    assert torch.equal(ours(x)[3], peer(x)[3])
    assert ours.out_channels == [in_channels, 64, 256, 512, 1024, 1024]


@pytest.mark.parametrize(("name", "layer"), [("rdnet_tiny", "stem.0"), ("fc_densenet56", "conv0")])
def test_a_first_convolution_keeps_its_bias_where_it_has_one(name, layer):
    encoder = smp.encoders.get_encoder(f"densekit-{name}", depth=3)
    old = encoder.get_submodule(layer)
    old.bias.data.normal_()
    encoder.set_in_channels(1, pretrained=True)
    new = encoder.get_submodule(layer)
    assert torch.equal(new.bias, old.bias)
    assert torch.equal(new.weight[:, 0], old.weight.sum(1))
    encoder.set_in_channels(5, pretrained=False)
    assert encoder(torch.rand(1, 5, 32, 32))[-1].shape[-1] == 4
    channels = [*encoder.channels]
    assert encoder.out_channels == (channels if name == "fc_densenet56" else [5, 20, *channels])


def test_random_kernels_for_other_channels_are_drawn_anew():
    net = smp.Unet("densekit-densenet121", encoder_weights=None, in_channels=5, classes=2)
    weight = net.encoder.features.conv0.weight
    assert weight.shape == (64, 5, 7, 7)
    assert weight.std().item() == pytest.approx((2 / (49 * 64)) ** 0.5, rel=0.05)
    assert net.train()(torch.rand(2, 5, 64, 64)).shape == (2, 2, 64, 64)


@pytest.mark.parametrize(("name", "depth", "least"), [("densenet121", 6, 1), ("rdnet_tiny", 1, 2)])
def test_an_impossible_depth_is_refused(name, depth, least):
    with pytest.raises(ConfigError, match=f"depth={depth}: expected {least} to 5"):
        smp.Unet(f"densekit-{name}", encoder_weights=None, encoder_depth=depth, decoder_channels=[1] * depth)


@pytest.mark.parametrize(("model", "depth"), [(smp.Unet, 5), (smp.FPN, 4)])
def test_weights_of_smp_load_strictly_and_give_its_own_logits(model, depth):
    peer = randomized(model("densenet121", encoder_weights=None, encoder_depth=depth, **narrow(model)))
    ours = model("densekit-densenet121-smp", encoder_weights=None, encoder_depth=depth, **narrow(model)).eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = peer(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [3, 5])
def test_weights_of_another_network_are_refused(depth):
    ours = smp.encoders.get_encoder("densekit-densenet121", depth=depth)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*denseblock3\.denselayer25"):
        ours.load_state_dict(smp.encoders.get_encoder("densenet169").state_dict())


def test_its_own_pretrained_weights_are_those_of_smp(monkeypatch, tmp_path):
    peer = smp.encoders.get_encoder("densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v for k, v in peer.state_dict().items()}
    assert old.keys() != peer.state_dict().keys()
    save_file({k: v for k, v in old.items() if "num_batches" not in k}, tmp_path / "model.safetensors")
    asked = []

    def fetch(repo_id, *, filename, revision):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(smp.encoders, "hf_hub_download", fetch)
    for depth in (5, 3):
        ours = smp.encoders.get_encoder("densekit-densenet121-smp", weights="imagenet", depth=depth, in_channels=4)
        assert torch.equal(ours.features.denseblock2.denselayer3.conv1.weight, weight_of(peer))
        assert ours.features.conv0.in_channels == 4
    assert ("smp-hub/densenet121.imagenet", "model.safetensors") in asked
    assert smp.encoders.encoders["densekit-densenet264"]["pretrained_settings"] == {}


def test_features_are_those_of_timms_rdnet_under_smp():
    peer = smp.encoders.get_encoder("tu-rdnet_tiny", weights=None).eval()
    ours = smp.encoders.get_encoder("densekit-rdnet_tiny").eval()
    state = peer.model.state_dict()
    ours.load_state_dict({key.replace("stem_", "stem.").replace("stages_", "stages."): state[key] for key in state})
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features = ours(x)
        for mine, theirs in zip(features[2:], peer(x)[2:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert ours.out_channels[2:] == peer.out_channels[2:]
    assert peer.out_channels[1] == 0
    assert torch.equal(features[1][:, [0, 3]], torch.stack([x[:, 0, ::2, ::2], x[:, 0, 1::2, 1::2]], 1))


@pytest.mark.parametrize("name", ["densenet121-smp", "rdnet_tiny", "fc_densenet56"])
def test_a_saved_network_comes_back_from_its_folder(name, tmp_path):
    net = randomized(smp.FPN(f"densekit-{name}", encoder_weights=None, in_channels=2, classes=3, **narrow(smp.FPN)))
    net.save_pretrained(tmp_path / "net")
    loaded = smp.from_pretrained(tmp_path / "net").eval()
    x = torch.rand(1, 2, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


def test_memory_policies_reach_the_encoder():
    net = smp.FPN("densekit-densenet121", encoder_weights=None, **narrow(smp.FPN))
    set_memory(net, "lean")
    assert {module.memory for module in net.modules() if hasattr(module, "memory")} == {"lean"}
    net.train()(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in net.encoder.parameters())

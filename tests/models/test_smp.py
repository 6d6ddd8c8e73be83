from __future__ import annotations

from fnmatch import fnmatch

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from densekit.cards import Card
from densekit.checkpoint import load_model, save_model
from densekit.errors import ConfigError
from densekit.models import MODELS, constructor_arguments, create_model
from densekit.models.smp import DECODERS
from densekit.predict.segment import Segmenter

TINY = {"encoder": "densenet", "growth_rate": 8, "block_config": (1, 2, 1, 2), "num_init_features": 8}
NARROW = dict.fromkeys(("unet", "unetplusplus", "manet"), (8,) * 5) | {"linknet": None}  # else one number
CASES = [(name, stride) for name, kind in DECODERS.items() for stride in sorted(kind.strides)]

# In SMP: biases that a batch norm takes away again, and paths of one rectified unit, which may be off.
NO_GRADIENT = {"pan": "decoder.fpa.*", "manet": "decoder.blocks.*.SE_*"}


@pytest.fixture
def tiny():
    """Builds a network over an encoder of six layers; batch norms get statistics of their own."""

    def build(name, **arguments):
        net = create_model(name, **{"num_classes": 5, **TINY, "decoder_channels": NARROW.get(name, 8), **arguments})
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
        return net

    return build


def test_every_decoder_has_a_name_in_the_table():
    names = {name for name, entry in MODELS.items() if entry.target == "smp:EncoderDecoder"}
    assert names == DECODERS.keys() == {MODELS[name].arguments["decoder"] for name in names}


@pytest.mark.parametrize(
    ("name", "encoder", "parameters"),
    [
        ("unet", "densenet121", 13_609_083),
        ("fpn", "densenet121", 9_301_003),
        ("unetplusplus", "densenet121", None),
        ("upernet", "densenet121", None),
        ("segformer", "densenet121", None),
        ("unet", "densenet161", None),
    ],
)
def test_parameters_are_named_and_shaped_as_those_of_smp_with_torchvision_densenets(name, encoder, parameters, on_meta):
    ours = on_meta(create_model, name, encoder=encoder)
    peer = on_meta(getattr(smp, DECODERS[name].model), encoder, encoder_weights=None, classes=11)
    shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in peer.state_dict().items()}
    assert parameters in (None, sum(p.numel() for p in ours.parameters()))


def test_what_no_tap_needs_is_not_built(count):
    assert count(create_model, "pspnet") == 2_137_611  # SMP builds the two blocks below as well: 7,792,907


@pytest.mark.parametrize(
    ("name", "model"), [("unet", smp.Unet), pytest.param("upernet", smp.UPerNet, marks=pytest.mark.slow)]
)
def test_logits_equal_those_of_smp_once_its_last_feature_is_rectified(name, model):
    peer = model("densenet121", encoder_weights=None, classes=11).eval()
    for module in peer.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
    mean, std = [0.4, 0.5, 0.3], [0.2, 0.3, 0.25]
    ours = create_model(name, mean=mean, std=std).eval()
    ours.load_state_dict(peer.state_dict())
    x = torch.rand(2, 3, 64, 96)
    normalised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        features = peer.encoder(normalised)
        for mine, theirs in zip(ours.encoder(normalised)[:-1], features[:-1], strict=True):
            assert torch.equal(mine, theirs)
        features[-1] = features[-1].relu()
        expected = peer.segmentation_head(peer.decoder(features))
        assert expected.std() > 0.05
        torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_every_decoder_takes_any_size_and_every_parameter_learns(name, stride, tiny, dead_parameters):
    net = tiny(name, output_stride=stride, in_channels=4)
    x = torch.rand(2, 4, 65, 70)
    assert net.multiple_of == stride
    assert net.encoder.output_stride == stride
    dead = dead_parameters(net, x)
    assert not [key for key in dead if not fnmatch(key, NO_GRADIENT.get(name, ""))]
    assert net.eval()(x).shape == (2, 5, 65, 70)


@pytest.mark.parametrize(
    "name", ["unet", "deeplabv3plus", *(pytest.param(name, marks=pytest.mark.slow) for name in ("upernet", "pan"))]
)
@settings(max_examples=8, deadline=None)
@given(height=st.integers(33, 200), width=st.integers(33, 200))
def test_logits_of_any_size_are_those_of_the_image_continued_to_the_grid(name, height, width):
    torch.manual_seed(0)
    net = create_model(name, num_classes=5, **TINY, decoder_channels=NARROW.get(name, 8)).eval()
    x = torch.rand(1, 3, height, width)
    rows = torch.arange(max(-(-height // net.multiple_of) * net.multiple_of, net.min_size)).clamp(max=height - 1)
    columns = torch.arange(max(-(-width // net.multiple_of) * net.multiple_of, net.min_size)).clamp(max=width - 1)
    with torch.no_grad():
        whole = net(x[:, :, rows][:, :, :, columns])
        assert whole.shape[-2:] == (len(rows), len(columns))
        assert torch.equal(net(x), whole[..., :height, :width])


@pytest.mark.parametrize("stride", [8, 16])
def test_deeplab_runs_dilated_over_our_encoders_where_smp_refuses_its_own(stride, tiny):
    with pytest.raises(ValueError, match="DenseNet encoders do not support dilated mode"):
        smp.DeepLabV3Plus("densenet121", encoder_weights=None, encoder_output_stride=stride)
    net = tiny("deeplabv3plus", output_stride=stride).eval()
    x = torch.rand(1, 3, 128, 160)
    assert net(x).shape == (1, 5, 128, 160)
    sides = [feature.shape[-1] for feature in net.encoder(x)]
    assert sides == [max(side, 160 // stride) for side in (160, 80, 40, 20, 10, 5)]


def test_weights_fit_every_output_stride(tiny):
    fine, coarse = tiny("unet", output_stride=8).eval(), tiny("unet", output_stride=32).eval()
    fine.load_state_dict(coarse.state_dict())
    x = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(fine.encoder(x)[3], coarse.encoder(x)[3])  # up to the first block that is dilated
        assert not torch.equal(fine(x), coarse(x))


@pytest.mark.parametrize(
    ("name", "width", "size", "least"),
    [
        ("unet", 2, 384, 1.0),
        ("segformer", 2, 384, 0.8),
        pytest.param("unetplusplus", 2, 384, 1.0, marks=pytest.mark.slow),
        pytest.param("linknet", None, 384, 0.8, marks=pytest.mark.slow),
    ],
)
def test_a_logit_depends_on_nothing_beyond_the_receptive_field(name, width, size, least, reach):
    arguments = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "num_init_features": 4}
    width = (width,) * 5 if name.startswith("unet") else width
    net = create_model(name, num_classes=1, encoder="densenet", decoder_channels=width, **arguments)
    phases = (16, 17, 30)  # of all 32, in which these networks see farthest
    assert least * net.receptive_field <= reach(net, in_channels=3, size=size, phases=phases) <= net.receptive_field


@pytest.mark.parametrize("name", [name for name, kind in DECODERS.items() if not kind.steps])
def test_a_decoder_that_sees_all_there_is_has_no_receptive_field(name, tiny):
    net = tiny(name).eval().double()
    assert net.receptive_field is None
    x = torch.rand(1, 3, 128, 128, dtype=torch.float64)
    changed = x.clone()
    changed[..., 0, 0] += 1
    assert not torch.equal(net(x)[..., -1, -1], net(changed)[..., -1, -1])


@pytest.mark.parametrize("name", [name for name, kind in DECODERS.items() if kind.pooled_norm])
def test_a_batch_of_one_cannot_train_a_pooled_norm_and_the_error_says_so(name, tiny):
    net = tiny(name).train()
    with pytest.raises(ConfigError) as error:
        net(torch.rand(1, 3, 128, 128))
    assert str(error.value) == (
        f"{name} pools each image to one value of a channel, and batch statistics of one value do not exist; give it "
        "at least 2 images at a time (train.batch_size)"
    )
    assert net.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 5, 64, 64)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("unet", {"decoder": "unt"}, "decoder='unt': not one of unet, unetplusplus, "),
        ("unet", {"encoder": "densenet12"}, "encoder='densenet12': not one of fc_densenet, fc_densenet56, "),
        ("unet", {"encoder": "densenet_cifar"}, "encoder='densenet_cifar': not one of fc_densenet, fc_densenet56, "),
        ("unet", {"encoder": "rdnet_tiny", "taps": "raw"}, "taps: rdnet_tiny takes no such argument; remove it"),
        ("unet", {"encoder": "fc_densenet56", "block_config": (1,)}, "block_config: fc_densenet56 takes no such arg"),
        ("unet", {"taps": "last"}, "taps='last': expected 'act', 'raw' or 'smp'"),
        ("fpn", {"output_stride": 16}, "output_stride=16: fpn takes 32"),
        ("deeplabv3plus", {"output_stride": 32}, "output_stride=32: deeplabv3plus takes 8 or 16"),
        ("linknet", {"decoder_channels": 4}, "decoder_channels: linknet has no width to choose; remove it"),
    ],
)
def test_an_impossible_argument_is_refused_by_name(name, arguments, message):
    with pytest.raises(ConfigError) as error:
        create_model(name, **arguments)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["unet", "deeplabv3plus"])
def test_a_checkpoint_rebuilds_the_network_and_predicts_images_of_any_size(name, tiny, tmp_path):
    net = tiny(name, mean=[0.4, 0.4, 0.4], std=[0.2, 0.2, 0.2]).eval()
    arguments = {"num_classes": 5, **TINY, "block_config": [1, 2, 1, 2], "mean": [0.4] * 3, "std": [0.2] * 3}
    arguments["decoder_channels"] = NARROW.get(name, 8)
    save_model(tmp_path / "net.safetensors", net, Card("seg", name, arguments))
    loaded, card = load_model(tmp_path / "net.safetensors")
    x = torch.rand(1, 3, 77, 123)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(loaded.eval()(x), expected)
    segmenter = Segmenter(loaded, card, device="cpu")
    torch.testing.assert_close(segmenter.logits(x, tile="off"), expected, rtol=1e-4, atol=1e-5)
    ids = segmenter.predict((x[0].permute(1, 2, 0).numpy() * 255).astype("uint8"), tile=64)
    assert ids.shape == (77, 123)


def test_with_smps_taps_a_network_of_smp_gives_its_own_logits():
    peer = randomized(smp.Unet("densenet121", encoder_weights=None, classes=11))
    ours = create_model("unet", taps="smp").eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), peer(x), rtol=1e-5, atol=1e-5)


def test_nothing_is_left_in_the_table_of_smp(tiny):
    before = dict(smp.encoders.encoders)
    tiny("unet")
    with pytest.raises(ValueError, match="decoder_channels"):
        tiny("unet", decoder_channels=(1, 2))
    assert smp.encoders.encoders == before


OTHERS = {
    "rdnet_tiny": {"growth_rate": (8,) * 7, "block_config": (1,) * 7, "num_init_features": 16},
    "fc_densenet56": {"growth_rate": 4, "num_init_features": 8},
}


@pytest.mark.parametrize("encoder", OTHERS)
@pytest.mark.parametrize("name", ["unet", "deeplabv3plus", "linknet"])
def test_other_encoders_take_any_size_and_their_checkpoints_rebuild_them(name, encoder, tmp_path):
    arguments = {"encoder": encoder, **OTHERS[encoder], "decoder_channels": NARROW.get(name, 8), "num_classes": 5}
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    net = create_model(name, in_channels=4, **arguments).eval()
    save_model(tmp_path / "net.safetensors", net, Card("seg", name, {"in_channels": 4, **arguments}))
    loaded, _ = load_model(tmp_path / "net.safetensors")
    x = torch.rand(1, 4, 65, 70)
    with torch.no_grad():
        assert net(x).shape == (1, 5, 65, 70)
        assert torch.equal(loaded.eval()(x), net(x))


def test_an_encoder_that_sees_the_whole_image_leaves_no_receptive_field():
    net = create_model("unet", encoder="rdnet_tiny", **OTHERS["rdnet_tiny"], decoder_channels=(2,) * 5)
    assert net.receptive_field is None


@pytest.mark.parametrize(("name", "width"), [("unet", (2,) * 5), ("linknet", None), ("segformer", 2)])
def test_a_logit_over_an_fc_densenet_depends_on_nothing_beyond_the_receptive_field(name, width, reach, monkeypatch):
    small = MODELS["fc_densenet"]._replace(arguments={"num_layers": 1, "growth_rate": 2, "num_init_features": 4})
    monkeypatch.setitem(MODELS, "fc_tiny", small)
    net = create_model(name, num_classes=1, encoder="fc_tiny", decoder_channels=width)
    assert 0.7 * net.receptive_field <= reach(net, in_channels=3, size=384, phases=(0, 17)) <= net.receptive_field


def randomized(net):
    """A network whose batch norms have statistics of their own, for prediction."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def test_arguments_are_those_of_a_config():
    assert constructor_arguments(type(create_model("unet", **TINY)))[:5] == [
        "num_classes",
        "decoder",
        "encoder",
        "output_stride",
        "decoder_channels",
    ]

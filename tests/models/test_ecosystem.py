"""Our encoders where others use theirs: every decoder of SMP, through SMP and through timm, and torchvision's tools."""

from __future__ import annotations

import itertools

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

import densekit.models.timm  # noqa: F401  (registers)
from densekit.models import MODELS, create_encoder, create_model
from densekit.models.smp import DECODERS, SmpDenseNet, SmpFCDenseNet, SmpRDNet, encoder_names

CHANNELS = (1, 3, 4, 8)
DEPTHS = (5, 4, 3)
CASES = [(decoder, stride) for decoder, kind in DECODERS.items() for stride in kind.strides]
TINY = {
    "densenet": (SmpDenseNet, {"growth_rate": 4, "block_config": (1, 1, 1, 1), "compression": 1.0}),
    "rdnet": (SmpRDNet, {"growth_rate": (8,) * 7, "block_config": (1,) * 7, "num_init_features": 16}),
    "fc_densenet": (SmpFCDenseNet, {"growth_rate": 4, "num_layers": 1, "num_init_features": 8}),
}
BY_SMP = [name for name in smp.encoders.encoders if name.startswith("densekit-")]
BY_TIMM = [f"tu-densekit_{name}" for name in encoder_names()]


def decode(decoder: str, encoder: str, stride: int, depth: int, in_channels: int, *, narrow: bool = False) -> nn.Module:
    """Returns a network of SMP whose logits have the size of the image."""
    kind = DECODERS[decoder]
    arguments = {kind.stride: stride, "in_channels": in_channels, "classes": 2, "encoder_depth": depth}
    if decoder in ("unet", "unetplusplus", "manet"):
        arguments["decoder_channels"] = (8,) * depth if narrow else (256, 128, 64, 32, 16)[5 - depth :]
    elif narrow and kind.channels:
        arguments[kind.channels] = 8
    if decoder == "pspnet":
        arguments["upsampling"] = min(stride, 2**depth)
    if decoder == "fpn":
        arguments["upsampling"] = 2 ** (depth - 3)  # its largest feature is the fourth from the end
    return getattr(smp, kind.model)(encoder, encoder_weights=None, **arguments)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("decoder", "stride"), CASES)
def test_every_decoder_runs_on_a_small_encoder_of_each_family(decoder, stride, depth, family, monkeypatch):
    encoder, params = TINY[family]
    entry = {"encoder": encoder, "params": params, "pretrained_settings": {}}
    monkeypatch.setitem(smp.encoders.encoders, "tiny", entry)
    in_channels = CHANNELS[(CASES.index((decoder, stride)) + depth) % len(CHANNELS)]
    net = decode(decoder, "tiny", stride, depth, in_channels, narrow=True).eval()
    reduction = min(stride, 2**depth)
    assert net.encoder.output_stride == reduction
    side = max(64, DECODERS[decoder].smallest * reduction)
    with torch.no_grad():
        assert net(torch.rand(1, in_channels, side, side)).shape == (1, 2, side, side)


@pytest.mark.parametrize(
    "decoder",
    [
        "unet",
        "deeplabv3plus",
        pytest.param("deeplabv3", marks=pytest.mark.slow),
        pytest.param("pan", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["densenet121", "rdnet_tiny", "fc_densenet56"])
def test_the_encoders_of_the_papers_run_through_both(name, decoder):
    for encoder in (f"densekit-{name}", f"tu-densekit_{name}"):
        net = decode(decoder, encoder, 16, 5, 4, narrow=True).eval()
        with torch.no_grad():
            assert net(torch.rand(1, 4, 128, 128)).shape == (1, 2, 128, 128)


@pytest.mark.parametrize("model", [smp.DeepLabV3, smp.DeepLabV3Plus, smp.PAN])
def test_these_decoders_refuse_the_densenets_of_smp_and_timm(model):
    with pytest.raises(ValueError, match="do not support dilated mode"):
        model("densenet121", encoder_weights=None)
    with pytest.raises(TypeError, match="output_stride"):
        model("tu-densenet121", encoder_weights=None)


class Asked(nn.Module):
    """An encoder of SMP that has been asked once already and gives the same features again."""

    def __init__(self, encoder, features):
        super().__init__()
        self.encoder, self.features = encoder, features
        self.out_channels, self.output_stride = encoder.out_channels, encoder.output_stride

    def forward(self, x):
        return [*self.features]

    def set_in_channels(self, *_, **__):
        pass

    make_dilated = set_in_channels


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("in_channels", CHANNELS)
@pytest.mark.parametrize("name", [*BY_SMP, *BY_TIMM])
def test_every_decoder_runs_on_every_encoder_at_every_stride(name, in_channels, monkeypatch):
    # On the meta device, where shapes are all there is. What an encoder makes is computed once for all decoders.
    x = torch.empty(2, in_channels, 256, 256, device="meta")
    strides = sorted({stride for _, stride in CASES})
    for stride, depth in itertools.product(strides, DEPTHS if in_channels == 3 else DEPTHS[:1]):
        with torch.device("meta"):
            encoder = smp.encoders.get_encoder(name, in_channels=in_channels, depth=depth, output_stride=stride).eval()
            with torch.no_grad():
                features = encoder(x)
        assert [feature.shape[1] for feature in features] == list(encoder.out_channels)
        assert [256 // feature.shape[-1] for feature in features] == [min(2**i, stride) for i in range(depth + 1)]
        asked = Asked(encoder, features)
        entry = {"encoder": lambda asked=asked, **_: asked, "params": {}, "pretrained_settings": {}}
        monkeypatch.setitem(smp.encoders.encoders, "asked", entry)
        for decoder in [decoder for decoder, taken in CASES if taken == stride]:
            if decoder == "fpn" and 0 in encoder.out_channels[-4:]:
                continue  # at depths of 3 and 4 it would read the empty feature that SMP puts at 1/2 of timm's models
            with torch.device("meta"), torch.no_grad():
                assert decode(decoder, "asked", stride, depth, in_channels).eval()(x).shape == (2, 2, 256, 256)


def test_nothing_that_is_registered_is_left_out():
    names = {name for name, entry in MODELS.items() if entry.encoder}
    assert names - {*encoder_names()} == {"densenet_cifar", "densenet_bc_cifar"}
    assert {name.removeprefix("densekit_") for name in timm.list_models("densekit_*")} == names
    assert {decoder for decoder, _ in CASES} == DECODERS.keys()
    assert len(DECODERS) == 11


def test_cifar_nets_run_where_a_decoder_takes_two_halvings():
    name = "tu-densekit_densenet_cifar"
    net = smp.Unet(name, encoder_weights=None, encoder_depth=2, decoder_channels=(8, 8)).eval()
    assert net(torch.rand(1, 3, 32, 48)).shape == (1, 1, 32, 48)


SMALL = {"growth_rate": 4, "block_config": (1, 2, 1, 2), "num_init_features": 8}


class TestTorchvision:
    def test_its_layer_getter_gives_the_blocks(self):
        net = create_model("densenet", **SMALL).eval()
        encoder = create_encoder("densenet", out_indices=(2, 3), taps="raw", **SMALL).eval()
        encoder.load_state_dict({key: net.state_dict()[key] for key in encoder.state_dict()})
        getter = IntermediateLayerGetter(net.features, {"denseblock2": "fine", "denseblock3": "coarse"})
        x = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            found = getter(x)
            for name, expected in zip(("fine", "coarse"), encoder(x), strict=True):
                assert torch.equal(found[name], expected)

    def test_its_tracer_gives_any_layer(self):
        net = create_model("densenet", **SMALL).eval()
        extractor = create_feature_extractor(net, {"features.transition1.relu": "act", "classifier": "logits"})
        encoder = create_encoder("densenet", out_indices=(1,), **SMALL).eval()
        encoder.load_state_dict({key: net.state_dict()[key] for key in encoder.state_dict()})
        x = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            found = extractor(x)
            assert torch.equal(found["logits"], net(x))
            assert torch.equal(found["act"], encoder(x)[0])

    def test_a_retina_net_trains_over_the_features_of_a_classifier(self):
        net = create_model("densenet", **SMALL)
        blocks = {f"denseblock{i}": str(i) for i in (2, 3, 4)}
        channels = [net.features.get_submodule(name).out_channels for name in blocks]
        backbone = BackboneWithFPN(net.features, blocks, channels, 16)
        anchors = AnchorGenerator(((16,), (32,), (64,), (128,)), ((1.0,),) * 4)
        detector = RetinaNet(backbone, num_classes=3, anchor_generator=anchors, min_size=64, max_size=96)
        target = {"boxes": torch.tensor([[5.0, 5, 40, 30]]), "labels": torch.tensor([1])}
        sum(detector.train()([torch.rand(3, 64, 80)] * 2, [target] * 2).values()).backward()
        assert all(p.grad is not None for p in backbone.parameters())
        assert {*detector.eval()([torch.rand(3, 64, 80)])[0]} == {"boxes", "scores", "labels"}

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [("densenet", {"output_stride": 16, **SMALL}), ("rdnet_tiny", TINY["rdnet"][1]), ("fc_densenet", {})],
    )
    def test_a_faster_rcnn_trains_over_any_encoder(self, name, arguments):
        class Backbone(nn.Module):
            """The recipe: an encoder, and torchvision's pyramid over what it gives."""

            def __init__(self):
                super().__init__()
                self.encoder = create_encoder(name, out_indices=(2, 3), **arguments)
                self.pyramid = FeaturePyramidNetwork(list(self.encoder.channels), 8)
                self.out_channels = 8

            def forward(self, x):
                return self.pyramid({str(i): feature for i, feature in enumerate(self.encoder(x))})

        backbone = Backbone()
        detector = FasterRCNN(
            backbone,
            num_classes=3,
            rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
            box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
            min_size=64,
            max_size=96,
        )
        target = {"boxes": torch.tensor([[5.0, 5, 40, 30]]), "labels": torch.tensor([1])}
        sum(detector.train()([torch.rand(3, 64, 80)] * 2, [target] * 2).values()).backward()
        assert all(p.grad is not None for p in backbone.parameters())

"""Whole networks of SMP: as SMP makes them, over its DenseNets and over timm's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import densekit
from densekit.cards import Card
from densekit.checkpoint import load_model
from densekit.cli.main import main
from densekit.dialects import convert, dialect_names, find_dialect, open_foreign, read_foreign, write_foreign
from densekit.dialects.smp import LAYOUTS, describe
from densekit.errors import CheckpointError, ConfigError
from densekit.image import Picture, write_image
from densekit.models import MODELS, create_model
from tests.dialects.conftest import largest_difference, randomize

GROWTH, BLOCKS, STEM = 4, (2, 1, 1, 1), 8  # PSPNet takes multiples of 4 channels of the second block
CLASSES = {
    "unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus, "manet": smp.MAnet, "linknet": smp.Linknet, "fpn": smp.FPN,
    "pspnet": smp.PSPNet, "upernet": smp.UPerNet, "segformer": smp.Segformer, "pan": smp.PAN,
}  # fmt: skip
LEVELS = (12, 10, 8, 6, 4)
WIDTHS = {  # SMP's words; other widths than its defaults
    "unet": {"decoder_channels": LEVELS},
    "unetplusplus": {"decoder_channels": LEVELS},
    "manet": {"decoder_channels": LEVELS},
    "linknet": {},
    "fpn": {"decoder_pyramid_channels": 24},
    "pspnet": {"psp_out_channels": 20},
    "upernet": {"decoder_channels": 16},
    "segformer": {"decoder_segmentation_channels": 12},
    "pan": {"decoder_channels": 8, "encoder_output_stride": 32},
}
DENSENET = {"growth_rate": GROWTH, "block_config": list(BLOCKS), "num_init_features": STEM}
ENCODER = {"encoder": "densenet", **DENSENET}
UNET = {"num_classes": 3, **ENCODER, "taps": "smp", "decoder_channels": list(LEVELS)}


def out_channels(growth_rate: int, blocks: tuple[int, ...], stem: int) -> list[int]:
    """Returns channels of SMP's features, from which it builds its decoders."""
    found, channels = [3, stem], stem
    for i, num_layers in enumerate(blocks):
        found.append(channels + num_layers * growth_rate)
        channels = found[-1] // 2 if i < len(blocks) - 1 else found[-1]
    return found


@pytest.fixture
def theirs(monkeypatch):
    """Builds a network of SMP over a small DenseNet of its own class, or of timm's."""
    params = {"growth_rate": GROWTH, "block_config": BLOCKS, "num_init_features": STEM}
    entry = {
        "encoder": smp.encoders.densenet.DenseNetEncoder,
        "params": {"out_channels": out_channels(GROWTH, BLOCKS, STEM), **params},
    }
    monkeypatch.setitem(smp.encoders.encoders, "small", entry)

    def build(decoder: str, encoder: str = "small", **arguments) -> nn.Module:
        own = {"growth_rate": GROWTH, "block_config": BLOCKS} if encoder.startswith("tu-") else {}
        return randomize(
            CLASSES[decoder](encoder, encoder_weights=None, **{"classes": 3, **WIDTHS[decoder], **own, **arguments})
        )

    return build


def picture_for(decoder: str, channels: int = 3) -> Tensor:
    side = 256 if decoder == "pan" else 64
    return torch.rand(2, channels, side, side + 32, generator=torch.Generator().manual_seed(1))


def width(decoder: str) -> int | list[int] | None:
    values = {key: value for key, value in WIDTHS[decoder].items() if "stride" not in key}
    return next((list(value) if isinstance(value, tuple) else value for value in values.values()), None)


def arguments_of(decoder: str, **more) -> dict:
    own = {"decoder_channels": width(decoder)} if width(decoder) else {}
    stride = {"output_stride": 32} if decoder == "pan" else {}
    return {"num_classes": 3, **ENCODER, "taps": "smp", **own, **stride, **more}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_every_decoder_that_is_known_is_tried():
    assert CLASSES.keys() == LAYOUTS.keys()
    assert dialect_names("smp", written=True) == ["smp", "smp-timm"]


@pytest.mark.parametrize("decoder", CLASSES)
def test_a_network_loads_strictly_gives_the_same_logits_and_goes_back(decoder, theirs, save, tmp_path):
    reference = theirs(decoder)
    path = save(reference.state_dict())
    net, card, report = open_foreign(path)
    assert (report.dialect, card.task, card.model, report.filled) == ("smp", "seg", decoder, {})
    assert card.arguments == arguments_of(decoder)
    x = picture_for(decoder)
    assert largest_difference(net, reference, x) <= 1e-5

    tensors = read_foreign(path)[0]
    write_foreign(tensors, card, "smp", tmp_path / "back.safetensors")
    state = safetensors.torch.load_file(tmp_path / "back.safetensors")
    again = theirs(decoder)
    again.load_state_dict(state, strict=True)
    assert largest_difference(again, reference, x) == 0
    assert_equal({**state, **{name: reference.state_dict()[name] for name in report.ignored}}, reference.state_dict())
    back, its_card, _ = read_foreign(tmp_path / "back.safetensors")
    assert its_card == card
    assert_equal(back, tensors)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("model", ["unet", "pspnet"])
def test_there_and_back_gives_the_same_bytes(model, half, own, tmp_path):
    source = own(Card("seg", model, arguments_of(model, mean=[0.4, 0.5, 0.6]), classes=("a", "b", "c")), half=half)
    convert(source, tmp_path / "there.safetensors", to="smp")
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


def test_what_a_shallow_decoder_does_not_look_at_is_told_and_no_encoder_gets_it(theirs, save):
    reference = theirs("pspnet")
    path = save(reference.state_dict())
    ignored = read_foreign(path)[2].ignored
    deeper = {"transition2", "transition3", "denseblock3", "denseblock4", "norm5"}
    assert set(ignored.values()) == {"deeper than pspnet looks"}
    assert {name.split(".")[2] for name in ignored} == deeper
    encoder = densekit.create_encoder("densenet", weights=path, taps="smp", out_indices=range(3), **DENSENET).eval()
    x = picture_for("pspnet")
    with torch.inference_mode():
        for ours, expected in zip(encoder(x), reference.encoder(x)[1:], strict=True):
            torch.testing.assert_close(ours, expected)
    with pytest.raises(CheckpointError, match=r"lacks features\.transition2\.conv\.weight, which .* it holds pspnet$"):
        densekit.create_encoder("densenet", weights=path, **DENSENET)


@pytest.mark.parametrize("decoder", ["unet", "segformer"])
def test_networks_over_timms_encoder_load_and_go_back(decoder, theirs, save, tmp_path):
    reference = theirs(decoder, "tu-densenet121")
    path = save(reference.state_dict())
    net, card, report = open_foreign(path)
    assert (report.dialect, card.model, report.ignored, report.filled) == ("smp-timm", decoder, {}, {})
    assert card.arguments == arguments_of(decoder, taps="raw")
    assert largest_difference(net, reference, picture_for(decoder)) <= 1e-5
    write_foreign(read_foreign(path)[0], card, "smp-timm", tmp_path / "back.pth")
    assert_equal(torch.load(tmp_path / "back.pth", weights_only=True), dict(reference.state_dict()))


@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (5, 2)])
def test_channels_and_classes_are_told_by_shapes(channels, classes, theirs, save):
    reference = theirs("unet", in_channels=channels, classes=classes)
    net, card, report = open_foreign(save(reference.state_dict()))
    assert card.arguments == {**UNET, "num_classes": classes, "in_channels": channels}
    assert not any("imagenet" in note for note in report.notes), "of RGB"
    assert largest_difference(net, reference, picture_for("unet", channels)) <= 1e-5


@pytest.mark.parametrize("name", ["densenet161", "densenet201"])
def test_the_larger_densenets_of_smp_are_known_by_their_names(name):
    with torch.device("meta"):
        state = smp.FPN(name, encoder_weights=None, classes=7).state_dict()
    dialect = find_dialect("smp", "smp")
    assert dialect.recognises(state)
    found = dialect.to_ours(state)
    model, arguments = describe(found.tensors, found.hints)
    assert (model, arguments) == (
        "fpn",
        {"num_classes": 7, "encoder": name, "taps": "smp", "decoder_channels": 256},
    )
    with torch.device("meta"):
        ours = create_model(model, **arguments).state_dict()
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in found.tensors.items()}


def test_a_saved_folder_is_a_model(tmp_path):
    reference = randomize(smp.Unet("densenet121", encoder_weights=None, classes=2, decoder_channels=LEVELS))
    reference.save_pretrained(tmp_path / "folder")
    segment = densekit.load(tmp_path / "folder")
    assert segment.card.arguments == {
        "num_classes": 2, "encoder": "densenet121", "taps": "smp", "decoder_channels": list(LEVELS),
    }  # fmt: skip
    assert largest_difference(segment.net, reference, picture_for("unet")) <= 1e-5


def test_what_programs_put_around_a_network_is_taken_off_and_a_second_head_left_out(theirs, save):
    reference = theirs("unet", aux_params={"classes": 4})
    path = save({"state_dict": {f"model.{name}": tensor for name, tensor in reference.state_dict().items()}})
    net, _, report = open_foreign(path)
    assert report.ignored == {
        f"model.classification_head.3.{name}": "a classifier beside the decoder" for name in ("weight", "bias")
    }
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(picture_for("unet")), reference(picture_for("unet"))[0])


def test_notes_say_what_weights_do_not(theirs, save):
    assert read_foreign(save(theirs("unet").state_dict()))[2].notes == (
        "weights do not tell the output stride, which is 32 with every DenseNet of SMP, nor how the decoder "
        "interpolates, for which SMP's default is taken; the network gives logits, without an activation",
        "pictures for SMP are usually normalised by ImageNet's mean and standard deviation outside of the network, "
        "which weights do not show; where these were, convert with --normalize imagenet",
    )
    assert "which is 8 with" in read_foreign(save(theirs("pspnet").state_dict()))[2].notes[0]


def test_the_command_line_predicts_and_converts(theirs, save, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("DENSEKIT_MALLOC", "0")  # of a command, not of the test process
    path = save(theirs("unet").state_dict(), "unet.pth")
    write_image(tmp_path / "x.png", Picture(np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)))
    assert main(["seg", "predict", str(tmp_path / "x.png"), "-m", str(path), "-o", str(tmp_path / "y")]) == 0
    assert "unet in the words of smp; 0 renamed, 0 ignored, 0 filled in" in capfd.readouterr().err
    out = tmp_path / "ours.safetensors"
    assert main(["seg", "convert", str(path), "-o", str(out), "--normalize", "imagenet", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["arguments"]["mean"] == [0.485, 0.456, 0.406]
    x = picture_for("unet")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        torch.testing.assert_close(load_model(out)[0].eval()(x), open_foreign(path)[0].eval()((x - mean) / std))


@pytest.mark.parametrize(
    "arguments",
    [
        {"decoder_attention_type": "scse", "decoder_channels": [16] * 5},
        {"encoder_depth": 4, "decoder_channels": LEVELS[:4]},
        {"decoder_use_norm": False},
    ],
    ids=["attention", "depth", "norm"],
)
def test_a_network_with_parts_that_ours_lack_is_an_encoder_still(arguments, theirs, save):
    reference = theirs("unet", **arguments)
    path = save(reference.state_dict())
    report = read_foreign(path)[2]
    assert (report.model, set(report.ignored.values())) == ("densenet", {"outside of 'encoder.'"})
    encoder = densekit.create_encoder("densenet", weights=path, taps="smp", out_indices=range(4), **DENSENET).eval()
    x = picture_for("unet")
    with torch.inference_mode():
        for ours, expected in zip(encoder(x), reference.encoder(x)[1:5], strict=True):
            torch.testing.assert_close(ours, expected)


def test_a_network_that_lacks_a_tensor_is_refused(theirs, save):
    state = theirs("unet").state_dict()
    del state["decoder.blocks.2.conv2.0.weight"]
    path = save(state)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == f"{path}: lacks decoder.blocks.2.conv2.0.weight (1 in all) for unet"


def test_an_encoder_that_decoders_are_not_built_over_is_refused(theirs, save):
    state = theirs("unet").state_dict()
    first = "encoder.features.denseblock1.denselayer1.conv1.weight"
    state[first] = state[first][: 2 * GROWTH]
    path = save(state)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == f"{path}: an encoder with bn_size 2; decoders here have DenseNets with the default"


@pytest.mark.parametrize(
    ("model", "change", "dialect", "message"),
    [
        ("unet", {"taps": None}, "smp", "have taps 'smp', but this one has not"),
        ("unet", {"taps": "raw"}, "smp", "have taps 'smp', but this one has not"),
        ("unet", {}, "smp-timm", "have taps 'raw', but this one has not"),
        ("unet", {"output_stride": 16}, "smp", "have an output stride of 32, but this one has not"),
        ("pan", {"decoder_channels": 8}, "smp", "have an output stride of 32, but this one has not"),
        ("unet", {"num_init_features": 6, "taps": "raw"}, "smp-timm", "have a stem of 2 k maps, but this one has not"),
        ("unet", {"block_config": [1] * 5}, "smp", "have four dense blocks, but this one has not"),
        ("deeplabv3plus", {"decoder_channels": 8}, "smp", "have no such decoder as deeplabv3plus over DenseNets"),
        (
            "pspnet",
            {"taps": "raw", "decoder_channels": 8},
            "smp-timm",
            "have no such decoder as pspnet over DenseNets",
        ),
    ],
)
def test_a_network_that_smp_does_not_have_is_not_written_for_it(model, change, dialect, message, own, tmp_path):
    arguments = {key: value for key, value in {**UNET, **change}.items() if value is not None}
    source, there = own(Card(MODELS[model].task, model, arguments)), tmp_path / "there.safetensors"
    with pytest.raises(CheckpointError) as error:
        convert(source, there, to=dialect)
    assert str(error.value) == f"{there}: networks of {dialect} {message}; not written"
    assert not there.exists()


def test_a_network_over_another_encoder_is_not_written_for_smp(own, tmp_path):
    arguments = {"num_classes": 3, "encoder": "fc_densenet", "growth_rate": 4, "decoder_channels": list(LEVELS)}
    with pytest.raises(CheckpointError, match=r"networks of smp have a DenseNet as encoder, but this one has fc_dense"):
        convert(own(Card("seg", "unet", arguments)), tmp_path / "there.pth", to="smp")
    with pytest.raises(ConfigError, match=r"dialect 'monai': none of smp \(known: smp, smp-timm\)"):
        convert(own(Card("seg", "unet", UNET)), tmp_path / "there.pth", to="monai")

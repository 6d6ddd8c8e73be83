"""Networks that spandrel knows and densekit does not: loaded safely, tiled exactly where they have a field."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from densekit.checkpoint import save_model
from densekit.dialects import convert, open_foreign
from densekit.dialects.reach import measured_field
from densekit.errors import CheckpointError, ConfigError
from densekit.predict import Upscaler, load

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.ESRGAN import ESRGAN
    from spandrel.architectures.PLKSR import PLKSR, RealPLKSR
    from spandrel.architectures.SPAN import SPAN
    from spandrel.architectures.SwinIR import SwinIR


def plksr() -> nn.Module:
    return PLKSR(
        dim=8, n_blocks=2, upscaling_factor=2, ccm_type="DCCM", kernel_size=9, split_ratio=0.25, lk_type="PLK",
        use_max_kernel=False, sparse_kernels=[5] * 4, sparse_dilations=[1, 2, 3, 4], with_idt=False, use_ea=True,
    )  # fmt: skip


def real_plksr(*, dysample: bool) -> nn.Module:
    return RealPLKSR(
        dim=8, upscaling_factor=2, n_blocks=2, kernel_size=9, split_ratio=0.25, use_ea=True, norm_groups=4,
        dysample=dysample, layer_norm=dysample,
    )  # fmt: skip


def swinir() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its use of torch.meshgrid
        return SwinIR(
            img_size=16, patch_size=1, in_chans=3, embed_dim=8, depths=[2], num_heads=[2], window_size=8,
            mlp_ratio=2.0, upscale=2, upsampler="pixelshuffledirect", img_range=1.0, resi_connection="1conv",
        )  # fmt: skip


# How far each sees, from its layers: 3x3 and 9x9 convolutions in a row.
EXACT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "RealESRGAN Compact": (lambda: Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=4, upscale=4), 6),
    "SPAN": (lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2, norm=False), 1 + 6 * 3 + 1 + 1),
    "PLKSR": (plksr, 1 + 2 * (1 + 1 + 4 + 1) + 1),
}


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def amplified(net: nn.Module, seed: int = 0) -> nn.Module:
    """Gives a network positive weights that keep the amplitude: no path through it dies, and far pixels count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 40
            parameter.copy_((torch.rand(parameter.shape, generator=generator) + 0.5) / fan_in)
    return net


def within_range(net: nn.Module) -> nn.Module:
    """Scales the last convolution so that little of what a network gives is clamped to 0..1."""
    last = [module for module in net.eval().modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        low, high = net(torch.rand(1, 3, 48, 48) ** 4).aminmax()
        last.weight.div_(2 * (high - low))
        last.bias.sub_(low).div_(2 * (high - low))
    return net


def save(path: Path, net: nn.Module) -> Path:
    torch.save({"params_ema": net.state_dict()}, path)
    return path


@pytest.mark.parametrize("name", EXACT)
def test_a_network_of_convolutions_is_opened_with_its_field(tmp_path, name):
    build, field = EXACT[name]
    theirs = build().eval()
    net, card, report = open_foreign(save(tmp_path / "4x.pth", theirs))
    assert (card.task, card.model, report.dialect) == ("sr", f"spandrel:{name}", "spandrel")
    assert (net.scale, net.in_channels, net.multiple_of) == (card.arguments["scale"], 3, 1)
    assert net.receptive_field == field
    assert report.notes == (
        "taken from its 'params_ema'",
        f"sees {field} pixels to each side, as measured: tiles are exact",
    )
    x = torch.rand(1, 3, 20, 24)
    with torch.inference_mode():
        assert (net(x) - theirs(x).clamp(0, 1)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", EXACT)
def test_tiles_give_the_whole_picture(tmp_path, name):
    build, field = EXACT[name]
    upscaler = load(save(tmp_path / "4x.pth", within_range(amplified(build()))), device="cpu")
    assert isinstance(upscaler, Upscaler)
    assert upscaler.context == field
    x = torch.rand(3, 61, 77) ** 4
    whole, tiled = upscaler.predict(x, tile="off"), upscaler.predict(x, tile=16)
    assert whole.std() > 0.001
    assert (whole - tiled).abs().max() <= 1e-5
    upscaler._field = 2
    assert (whole - upscaler.predict(x, tile=16)).abs().max() > 1e-3  # so far pixels count


@pytest.mark.slow
def test_windows_of_attention_that_begin_where_tiles_do_are_exact(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spandrel.architectures.DRCT import DRCT

        theirs = DRCT(
            upscale=2, img_size=16, depths=[6], num_heads=[2], embed_dim=12, window_size=8, mlp_ratio=2,
            upsampler="pixelshuffle", resi_connection="1conv",
        )  # fmt: skip
    upscaler = load(save(tmp_path / "2x.pth", theirs), device="cpu")
    assert (upscaler.net.multiple_of, upscaler.net.receptive_field) == (16, 43)
    x = torch.rand(3, 150, 141)
    whole, tiled = upscaler.predict(x, tile="off"), upscaler.predict(x, tile=32)
    assert whole.std() > 0.01
    assert (whole - tiled).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (swinir, "attention in windows, which is not alike everywhere"),
        (lambda: real_plksr(dysample=False), "statistics of the whole picture"),
        (lambda: real_plksr(dysample=True), "samples where its own maps tell it to"),
    ],
)
def test_a_network_whose_tiles_are_not_exact_has_no_field(tmp_path, build, what):
    net, _, report = open_foreign(save(tmp_path / "2x.pth", build()))
    assert net.receptive_field is None, what
    assert report.notes[-1] == (
        "sees further than any tile, or not everywhere alike: where memory asks for tiles, they are not exact"
    )


def test_without_a_field_the_picture_goes_through_as_a_whole_if_it_fits(tmp_path):
    theirs = swinir().eval()
    upscaler = load(save(tmp_path / "2x.pth", theirs), device="cpu")
    x = torch.rand(1, 3, 48, 56)
    assert upscaler.choose_tile(48, 56) is None
    with torch.inference_mode():
        expected = theirs(x).clamp(0, 1)
    y = upscaler.predict(x)  # warnings are errors here
    assert (y - expected).abs().max() <= 1e-5


def test_without_a_field_tiles_fade_into_each_other_and_a_warning_says_so(tmp_path):
    upscaler = load(save(tmp_path / "2x.pth", swinir()), device="cpu")
    x = torch.rand(3, 64, 80)
    whole = upscaler.predict(x)
    with pytest.warns(UserWarning, match="not exact: they fade into each other"):
        tiled = upscaler.predict(x, tile=48)
    assert tiled.shape == whole.shape == (3, 128, 160)
    assert 0 < (tiled - whole).abs().max() < 0.1
    pixels = (255 * torch.rand(40, 60, 3)).byte().numpy()
    with pytest.warns(UserWarning, match="not exact"):
        assert upscaler.predict(pixels, tile=32).shape == (80, 120, 3)


def test_without_a_field_a_picture_too_large_for_the_memory_goes_in_tiles(tmp_path, monkeypatch):
    upscaler = load(save(tmp_path / "2x.pth", swinir()), device="cpu")
    budget = 2 * 200**2 * upscaler._runner.bytes_per_pixel
    monkeypatch.setattr("densekit.predict.upscale.available_memory", lambda device: budget)
    assert upscaler.choose_tile(150, 150) is None
    assert upscaler.choose_tile(400, 300) == 200 - 2 * 32


def test_a_network_that_predicts_grey_alone_takes_colour(tmp_path):
    net = Compact(num_in_ch=1, num_out_ch=1, num_feat=4, num_conv=2, upscale=2)
    upscaler = load(save(tmp_path / "2x.pth", net), device="cpu")
    assert upscaler.predict(torch.rand(3, 20, 20)).shape == (3, 40, 40)


def test_a_network_that_cannot_run_in_half_precision_says_so(tmp_path):
    path = save(tmp_path / "2x.pth", swinir())
    with pytest.raises(ConfigError) as error:
        load(path, device="cpu", precision="fp16")
    assert str(error.value) == "precision fp16: this network runs in fp32 or bf16 alone"


def test_bf16_runs_in_a_copy(tmp_path):
    build, _ = EXACT["RealESRGAN Compact"]
    path = save(tmp_path / "4x.pth", build())
    x = torch.rand(3, 24, 24)
    exact = load(path, device="cpu").predict(x)
    rough = load(path, device="cpu", precision="bf16")
    assert 0 < (rough.predict(x) - exact).abs().max() < 0.05
    assert rough.net.body.body[0].weight.dtype == torch.float32


def test_it_is_neither_trained_nor_saved_nor_converted(tmp_path):
    path = save(tmp_path / "2x.pth", EXACT["SPAN"][0]())
    net, card, _ = open_foreign(path)
    with pytest.raises(ConfigError) as error:
        net.train()
    assert str(error.value) == "SPAN is a network of spandrel's, which predicts here and is not trained"
    with pytest.raises(CheckpointError) as error:
        save_model(tmp_path / "ours.safetensors", net, card)
    assert str(error.value) == (
        "SPAN is a network of spandrel's, not densekit's, so it cannot be saved as a checkpoint; keep the file that it "
        "came from"
    )
    with pytest.raises(CheckpointError) as error:
        convert(path, tmp_path / "ours.safetensors")
    assert str(error.value).startswith(f"{path}: weights of no network known here (")
    assert str(error.value).endswith(
        "; networks that only spandrel knows predict from their own file and cannot be converted"
    )
    assert [item.name for item in tmp_path.iterdir()] == ["2x.pth"]


def test_what_densekit_has_itself_does_not_go_to_spandrel(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)  # importing it fails
    _, card, report = open_foreign(save(tmp_path / "4x.pth", ESRGAN(num_filters=8, num_blocks=1)))
    assert (card.model, report.dialect) == ("rrdbnet", "esrgan-old")


def test_without_spandrel_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    path = save(tmp_path / "2x.pth", EXACT["SPAN"][0]())
    monkeypatch.setattr("densekit.dialects.spandrel.find_spec", lambda name: None)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value).startswith(f"{path}: weights of no network known here (")
    assert str(error.value).endswith("; spandrel knows many more: pip install 'densekit[foreign]'")


def test_weights_that_nobody_knows_are_refused(tmp_path):
    path = save(tmp_path / "odd.pth", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value).endswith(", and those of spandrel")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: state.pop("body.4.bias"), "Missing key(s) in state_dict: \"body.4.bias\""),
        (lambda state: state.update({"body.2.weight": torch.rand(8, 8, 5, 5)}), "size mismatch for body.2.weight"),
        (lambda state: state.update({"extra": torch.rand(1)}), "Unexpected key(s) in state_dict: \"extra\""),
    ],
)  # fmt: skip
def test_weights_that_are_not_all_of_a_network_of_spandrels_fail_with_its_reason(tmp_path, change, text):
    state = EXACT["RealESRGAN Compact"][0]().state_dict()
    change(state)
    path = tmp_path / "4x.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value).startswith(f"{path}: spandrel takes the weights for one of its networks', but cannot load")
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = EXACT["RealESRGAN Compact"][0]().state_dict()
    state["body.0.bias"][0] = torch.nan
    torch.save(state, tmp_path / "4x.pth")
    with pytest.raises(CheckpointError, match=r"body\.0\.bias holds values that are not finite"):
        open_foreign(tmp_path / "4x.pth")


def test_sr_predict_takes_the_file_of_a_network_that_spandrel_knows(tmp_path, monkeypatch, capfd):
    from densekit.cli import main

    monkeypatch.setenv("DENSEKIT_MALLOC", "0")
    weights = save(tmp_path / "4x_random.pth", amplified(EXACT["RealESRGAN Compact"][0]()))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    outs = []
    for tile in ("off", "16"):
        out = tmp_path / f"{tile}.png"
        words = ["sr", "predict", tmp_path / "photo.png", "-m", weights, "-o", out, "--tile", tile, "--device", "cpu"]
        assert main([str(word) for word in words]) == 0
        outs.append(np.asarray(Image.open(out)))
    assert "sees 6 pixels to each side" in capfd.readouterr().err
    assert outs[0].shape == (160, 200, 3)
    np.testing.assert_array_equal(outs[0], outs[1])


# Fields themselves, on networks whose fields are known.


def convs(*widths: int) -> nn.Module:
    """Returns convolutions of one row each in a row."""
    net = nn.Sequential(*(nn.Conv2d(1, 1, (1, width), padding=(0, width // 2)) for width in widths))
    return amplified(net).eval()


class Folded(nn.Module):
    """Folds 4x4 pixels, convolves, and lays them out again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.conv(nn.functional.pixel_unshuffle(x, 4)), 4)


@pytest.mark.parametrize(("widths", "field"), [((3,), 1), ((1,), 0), ((3, 5, 7), 6), ((101, 101), 100)])
def test_the_field_of_convolutions_is_exact(widths, field):
    assert measured_field(convs(*widths), in_channels=1, scale=1) == field


def test_the_field_of_a_folded_network_is_at_most_a_cell_too_large():
    field = measured_field(amplified(Folded()).eval(), in_channels=1, scale=1, multiple_of=4)
    assert 7 <= field <= 10  # 3 pixels of the cell, and the next one


def test_the_larger_of_the_two_directions_counts():
    tall = amplified(nn.Conv2d(1, 1, (9, 3), padding=(4, 1))).eval()
    wide = amplified(nn.Conv2d(1, 1, (3, 9), padding=(1, 4))).eval()
    assert measured_field(tall, in_channels=1, scale=1) == measured_field(wide, in_channels=1, scale=1) == 4


def test_a_field_larger_than_any_strip_is_none():
    assert measured_field(convs(*[201] * 6), in_channels=1, scale=1, thickness=1) is None


def test_what_depends_on_its_place_has_no_field():
    ramp = torch.linspace(0, 1, 2048)

    def net(x: Tensor) -> Tensor:
        return x + ramp[: x.shape[-1]] + ramp[: x.shape[-2], None]

    assert measured_field(net, in_channels=1, scale=1) is None


def test_windows_of_attention_have_no_field_since_they_do_not_move_along():
    def net(x: Tensor) -> Tensor:
        return x + nn.functional.interpolate(nn.functional.avg_pool2d(x, 8), scale_factor=8)

    assert measured_field(net, in_channels=1, scale=1) is None
    assert measured_field(net, in_channels=1, scale=1, multiple_of=8) is not None  # tiles begin where windows do


def test_statistics_of_the_whole_picture_have_no_field():
    assert measured_field(lambda x: x - x.mean((2, 3), keepdim=True), in_channels=1, scale=1) is None


def test_what_gives_nothing_back_has_no_field():
    assert measured_field(torch.zeros_like, in_channels=1, scale=1) is None

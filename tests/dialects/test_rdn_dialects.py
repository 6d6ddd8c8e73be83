"""RDN in three layouts, against forward passes written from the layouts on the foreign tensors themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.cards import Card
from densekit.checkpoint import load_model
from densekit.dialects import Changes, convert, open_foreign, read_foreign, write_foreign
from densekit.errors import CheckpointError
from densekit.models import create_model

D, C = 3, 2  # blocks, convolutions of a block
NO_UPSAMPLER = "an RDN without an upsampler, as in LIIF and Meta-SR, which enlarges nothing; expected a whole RDN"
NAMES = {
    "yjn870": ("sfe1", "sfe2", "rdbs.{d}.layers.{c}.conv", "rdbs.{d}.lff", "gff.0", "gff.1", "upscale.{k}", "output"),
    "edsr": (
        "SFENet1", "SFENet2", "RDBs.{d}.convs.{c}.conv.0", "RDBs.{d}.LFF", "GFF.0", "GFF.1", "UPNet.{k}", "UPNet.{last}"
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def conv(state: dict[str, Tensor], name: str, out: int, channels: int, size: int = 3) -> None:
    state[f"{name}.weight"] = torch.randn(out, channels, size, size) / (size**2 * channels) ** 0.5
    state[f"{name}.bias"] = torch.randn(out) / 10


def stages_of(scale: int) -> list[int]:
    return {2: [2], 3: [3], 4: [2, 2]}[scale]


def foreign(dialect: str, scale: int, *, features: int = 8, growth: int = 8) -> dict[str, Tensor]:
    """Returns a state dict as the library's own network has it, with random weights."""
    sfe1, sfe2, dense, lff, gff0, gff1, up, last = NAMES[dialect]
    stages, state = stages_of(scale), {}
    conv(state, sfe1, features, 3)
    conv(state, sfe2, features, features)
    for d in range(D):
        for c in range(C):
            conv(state, dense.format(d=d, c=c), growth, features + c * growth)
        conv(state, lff.format(d=d), features, features + C * growth, 1)
    conv(state, gff0, features, D * features, 1)
    conv(state, gff1, features, features)
    width = growth if dialect == "edsr" else features
    channels = features
    for k, factor in enumerate(stages):
        conv(state, up.format(k=2 * k), width * factor**2, channels)
        channels = width
    conv(state, last.format(last=2 * len(stages)), 3, channels)
    return state


def forward(dialect: str, state: Mapping[str, Tensor], x: Tensor, scale: int) -> Tensor:
    """Returns what the library's network gives, from its state alone."""
    sfe1, sfe2, dense, lff, gff0, gff1, up, last = NAMES[dialect]

    def apply(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    shallow = apply(sfe1, x)
    x, outs = apply(sfe2, shallow), []
    for d in range(D):
        maps = x
        for c in range(C):
            maps = torch.cat([maps, F.relu(apply(dense.format(d=d, c=c), maps))], 1)
        x = x + apply(lff.format(d=d), maps)
        outs.append(x)
    x = apply(gff1, apply(gff0, torch.cat(outs, 1))) + shallow
    stages = stages_of(scale)
    for k, factor in enumerate(stages):
        x = F.pixel_shuffle(apply(up.format(k=2 * k), x), factor)
    return apply(last.format(last=2 * len(stages)), x)


def keras_names() -> dict[str, tuple[int, int, int]]:
    """Returns the (kernel size, in, out) of idealo's layers, in their order, for G0 = 6 and G = 5."""
    features, growth = 6, 5
    sizes = {"F_m1": (3, 3, features), "F_0": (3, features, features)}
    for d in range(1, D + 1):
        for c in range(1, C + 1):
            sizes[f"F_{d}_{c}"] = (3, features + (c - 1) * growth, growth)
        sizes[f"LFF_{d}"] = (1, features + C * growth, features)
    return sizes | {"GFF_1": (1, D * features, features), "GFF_2": (3, features, features)}


def idealo(scale: int, *, shuffle: bool) -> dict[str, np.ndarray]:
    """Returns kernels (H, W, in, out) and biases as idealo's network has them."""
    rng, width = np.random.default_rng(0), 3 * scale**2
    sizes = keras_names() | {
        "UPN1": (5, 6, 64),
        "UPN2": (3, 64, 32),
        "UPN3": (3, 32, width),
        "SR": (3, 3 if shuffle else width, 3),
    }
    arrays = {}
    for name, (size, channels, out) in sizes.items():
        kernel = rng.standard_normal((size, size, channels, out)) / (size**2 * channels) ** 0.5
        arrays[f"{name}/kernel"] = kernel.astype(np.float32)
        arrays[f"{name}/bias"] = (rng.standard_normal(out) / 10).astype(np.float32)
    return arrays


def idealo_forward(arrays: Mapping[str, np.ndarray], x: Tensor, scale: int, *, shuffle: bool) -> Tensor:
    """Returns what idealo's Keras network gives, channels last as there."""

    def apply(name: str, x: Tensor) -> Tensor:
        kernel = torch.from_numpy(arrays[f"{name}/kernel"]).permute(3, 2, 0, 1)
        y = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=kernel.shape[-1] // 2).permute(0, 2, 3, 1)
        return y + torch.from_numpy(arrays[f"{name}/bias"])

    x = x.permute(0, 2, 3, 1)
    shallow = apply("F_m1", x)
    x, outs = apply("F_0", shallow), []
    for d in range(1, D + 1):
        maps = x
        for c in range(1, C + 1):
            maps = torch.cat([maps, F.relu(apply(f"F_{d}_{c}", maps))], -1)
        x = x + apply(f"LFF_{d}", maps)
        outs.append(x)
    x = apply("GFF_2", apply("GFF_1", torch.cat(outs, -1))) + shallow
    x = apply("UPN3", F.relu(apply("UPN2", F.relu(apply("UPN1", x)))))
    if shuffle:  # tf.nn.depth_to_space: channels are (row in the cell, column in the cell, image channel)
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height, width, scale, scale, 3).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height * scale, width * scale, 3)
    else:
        x = x.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return apply("SR", x).permute(0, 3, 1, 2)


def save_h5(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Writes weights as Keras' save_weights did: each layer's name twice, and ":0"."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            layer, weight = name.split("/")
            file[f"{layer}/{layer}/{weight}:0"] = array
    return path


def save(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("dialect", "growth"), [("yjn870", 8), ("edsr", 8), ("edsr", 5)])
def test_the_picture_is_that_of_the_layout_written_out(tmp_path, dialect, growth, scale):
    state = foreign(dialect, scale, growth=growth)
    net, card, report = open_foreign(save(tmp_path / "rdn.pt", state))
    upsampler = "pixelshuffle" if growth == 8 else "pixelshuffle_growth"
    assert (report.dialect, card.model) == (dialect, "rdn")
    assert card.arguments == {
        "scale": scale, "in_channels": 3, "out_channels": 3, "num_features": 8, "num_blocks": D, "num_layers": C,
        "growth_rate": growth, "upsampler": upsampler,
    }  # fmt: skip
    assert not report.ignored
    x = torch.rand(1, 3, 9, 12)
    with torch.inference_mode():
        expected = forward(dialect, state, x, scale)
        assert expected.std() > 0.01
        assert (net.eval()(x) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_picture_is_that_of_idealos_network_written_out(tmp_path, scale, shuffle):
    arrays = idealo(scale, shuffle=shuffle)
    net, card, report = open_foreign(save_h5(tmp_path / "rdn.hdf5", arrays))
    assert (report.dialect, card.arguments["scale"]) == ("idealo", scale)
    assert card.arguments["upsampler"] == ("espcn" if shuffle else "espcn_nearest")
    assert report.renamed["F_2_1/kernel"] == "blocks.1.dense.denselayer1.conv.weight"
    x = torch.rand(1, 3, 9, 12)
    with torch.inference_mode():
        expected = idealo_forward(arrays, x, scale, shuffle=shuffle)
        assert expected.std() > 0.01
        assert (net.eval()(x) - expected).abs().max() <= 1e-5


def test_mmagics_generator_is_found_in_its_checkpoint(tmp_path):
    state = foreign("yjn870", 4)
    wrapped = {"meta": {"epoch": 3}, "state_dict": {f"generator.{name}": tensor for name, tensor in state.items()}}
    net, _, report = open_foreign(save(tmp_path / "rdn.pth", wrapped))
    assert torch.equal(net.tail[4].bias, state["output.bias"])
    assert report.dialect == "yjn870"


def test_the_report_of_edsr_says_that_its_values_may_go_to_255(tmp_path):
    _, _, report = open_foreign(save(tmp_path / "rdn.pt", foreign("edsr", 2)))
    assert report.notes == (
        "EDSR-PyTorch trains on values in 0..255 unless told otherwise, which weights do not show; densekit gives "
        "0..1, so where results are flat or black, convert with --value-range 255",
    )


@pytest.mark.parametrize("scale", [2, 4])
def test_weights_for_values_up_to_255_are_converted_to_ours(tmp_path, scale):
    state = foreign("edsr", scale)
    source = save(tmp_path / "rdn.pt", state)
    convert(source, tmp_path / "ours.safetensors", changes=Changes(value_range=255))
    net, _ = load_model(tmp_path / "ours.safetensors")
    x = torch.rand(1, 3, 9, 12)
    with torch.inference_mode():
        expected = forward("edsr", state, 255 * x, scale) / 255
        assert (forward("edsr", state, x, scale) - expected).abs().max() > 1e-3
        assert (net.eval()(x) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("dialect", ["yjn870", "edsr", "idealo"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_ours_and_theirs_and_ours_again_are_the_same_bytes(tmp_path, dialect, scale):
    upsampler = "espcn" if dialect == "idealo" else "pixelshuffle"
    sizes = {"num_blocks": D, "num_layers": C, "growth_rate": 6, "num_features": 6}
    card = Card("sr", "rdn", {"scale": scale, "upsampler": upsampler, **sizes}, licence="CC0-1.0")
    ours = create_model("rdn", **card.arguments).state_dict()
    path = tmp_path / ("theirs.h5" if dialect == "idealo" else "theirs.pt")
    write_foreign(ours, card, dialect, path)
    back, card_back, report = read_foreign(path)
    assert (card_back, report.dialect) == (card, dialect)
    assert safetensors.torch.save(back) == safetensors.torch.save(dict(ours))


@pytest.mark.parametrize("shuffle", [True, False])
def test_what_is_written_for_keras_is_what_was_read(tmp_path, shuffle):
    h5py = pytest.importorskip("h5py")
    arrays = idealo(3, shuffle=shuffle)
    tensors, card, _ = read_foreign(save_h5(tmp_path / "rdn.h5", arrays))
    write_foreign(tensors, card, "idealo", tmp_path / "again.h5")
    with h5py.File(tmp_path / "again.h5") as file:
        layers = [name.decode() if isinstance(name, bytes) else name for name in file.attrs["layer_names"]]
        assert layers == list(dict.fromkeys(name.split("/")[0] for name in arrays))  # Keras reads them in order
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name.split("/")[0]][name], array)


@pytest.mark.parametrize(
    ("dialect", "arguments", "message"),
    [
        (
            "yjn870",
            {"growth_rate": 5},
            "networks of yjn870 have growth_rate and num_features equal, and this one has not",
        ),
        (
            "edsr",
            {"growth_rate": 5},
            "networks of edsr have the upsampler pixelshuffle_growth, and this one pixelshuffle",
        ),
        ("edsr", {"bicubic_skip": True}, "networks of edsr have no bicubic skip, and this one adds its maps to one"),
        (
            "yjn870",
            {"upsampler": "pixelshuffledirect"},
            "networks of yjn870 have the upsampler pixelshuffle, and this one pixelshuffledirect",
        ),
        ("idealo", {}, "networks of idealo have the upsampler espcn or espcn_nearest, and this one pixelshuffle"),
    ],
)
def test_a_network_that_the_library_does_not_have_is_not_written(tmp_path, dialect, arguments, message):
    sizes = {"num_blocks": 1, "num_layers": 1, "growth_rate": 6, "num_features": 6}
    card = Card("sr", "rdn", {**sizes, **arguments})
    path = tmp_path / ("theirs.h5" if dialect == "idealo" else "theirs.pt")
    with pytest.raises(CheckpointError) as error:
        write_foreign(create_model("rdn", **card.arguments).state_dict(), card, dialect, path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("dialect", "without", "message"),
    [
        ("yjn870", "upscale", NO_UPSAMPLER),
        ("edsr", "UPNet", NO_UPSAMPLER),
        ("yjn870", "rdbs.1.lff", "lacks blocks.1.fusion.bias (2 in all) for rdn"),
        ("edsr", "RDBs.2.convs.1", "lacks blocks.2.dense.denselayer2.conv.bias (2 in all) for rdn"),
        ("yjn870", "sfe2", "lacks sfe2.bias (2 in all) for rdn"),
    ],
)
def test_a_file_that_is_not_all_of_a_network_fails_with_its_reason(tmp_path, dialect, without, message):
    state = {name: tensor for name, tensor in foreign(dialect, 4).items() if not name.startswith(without)}
    path = save(tmp_path / "rdn.pt", state)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_tensor_too_many_is_named(tmp_path):
    path = save(tmp_path / "rdn.pt", {**foreign("edsr", 2), "add_mean.weight": torch.rand(3, 3, 1, 1)})
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == f"{path}: has the unknown add_mean.weight (1 in all) for rdn"

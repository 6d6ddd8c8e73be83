"""SRDenseNet in two layouts, against forward passes written from the layouts on the foreign tensors themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.cards import Card
from densekit.dialects import open_foreign, read_foreign, write_foreign
from densekit.errors import CheckpointError
from densekit.models import create_model

B, L, G, WIDE = 3, 3, 4, 10  # blocks, convolutions of a block, maps each adds, maps that are enlarged
LAYERS = {
    "yjn870": ("conv.conv", "dense_blocks.{b}.block.{l}.conv", "bottleneck.0"),
    "twtygqyy": ("lowlevel", "denseblock{b1}.0.conv{l1}", "bottleneck"),
}


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def foreign(dialect: str) -> dict[str, Tensor]:
    """Returns a state dict as the library's own network has it, with random weights."""
    first, dense, bottleneck = LAYERS[dialect]
    has_biases = dialect == "yjn870"
    size = 3 if has_biases else 2
    shapes = {first: (G * L, 1, 3, 3)}
    for b in range(B):
        for l in range(L):  # noqa: E741
            channels = G * L * (b + 1) if l == 0 else G * l
            shapes[dense.format(b=b, l=l, b1=b + 1, l1=l + 1)] = (G, channels, 3, 3)
    shapes |= {bottleneck: (WIDE, G * L * (B + 1), 1, 1), "deconv.0": (WIDE, WIDE, size, size)}
    shapes |= {"deconv.2": (WIDE, WIDE, size, size), "reconstruction": (1, WIDE, 3, 3)}
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape) * (2 / (shape[1] * shape[2] ** 2)) ** 0.5
        if has_biases or name not in (bottleneck, "deconv.0", "deconv.2", "reconstruction"):
            state[f"{name}.bias"] = torch.randn(WIDE if name.startswith("deconv") else shape[0]) / 10
    return state


def forward(dialect: str, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Returns what the library's network gives, from its state alone."""
    first, dense, bottleneck = LAYERS[dialect]

    def apply(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    x = F.relu(apply(first, x))
    for b in range(B):
        maps = F.relu(apply(dense.format(b=b, l=0, b1=b + 1, l1=1), x))
        for l in range(1, L):  # noqa: E741
            new = F.relu(apply(dense.format(b=b, l=l, b1=b + 1, l1=l + 1), maps))
            maps = torch.cat([maps, new], 1)
        x = torch.cat([x, maps], 1)
    x = apply(bottleneck, x)
    padding = {}
    if dialect == "yjn870":
        x, padding = F.relu(x), {"padding": 1, "output_padding": 1}
    for name in ("deconv.0", "deconv.2"):
        bias = state.get(f"{name}.bias")
        x = F.relu(F.conv_transpose2d(x, state[f"{name}.weight"], bias, stride=2, **padding))
    return apply("reconstruction", x)


def save(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("dialect", LAYERS)
def test_the_picture_is_that_of_the_layout_written_out(tmp_path, dialect):
    state = foreign(dialect)
    net, card, report = open_foreign(save(tmp_path / "net.pth", {"epoch": 3, "state_dict": state}))
    assert (report.dialect, card.model, net.scale) == (dialect, "srdensenet", 4)
    assert not report.ignored
    x = torch.rand(1, 1, 9, 12)
    with torch.inference_mode():
        expected = forward(dialect, state, x)
        assert expected.std() > 0.01
        assert (net.eval()(x) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(("dialect", "parameters"), [("yjn870", 2_659_585), ("twtygqyy", 2_003_456)])
def test_the_published_sizes_are_inferred(tmp_path, dialect, parameters, monkeypatch):
    for name, value in {"B": 8, "L": 8, "G": 16, "WIDE": 256}.items():
        monkeypatch.setitem(globals(), name, value)
    net, _, _ = open_foreign(save(tmp_path / "net.pth", foreign(dialect)))
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("dialect", LAYERS)
def test_ours_and_theirs_and_ours_again_are_the_same_bytes(tmp_path, dialect):
    tensors, card, _ = read_foreign(save(tmp_path / "net.pth", foreign(dialect)))
    path = tmp_path / "theirs.safetensors"
    write_foreign(tensors, card, dialect, path)
    assert safetensors.torch.load_file(path).keys() == foreign(dialect).keys()
    back, card_back, report = read_foreign(path)
    assert (card_back, report.dialect) == (card, dialect)
    assert safetensors.torch.save(back) == safetensors.torch.save(tensors)


def test_the_state_with_prelu_is_refused_and_why(tmp_path):
    slopes = {name: torch.rand(1) for name in ("relu.weight", "denseblock1.0.relu.weight", "deconv.1.weight")}
    path = save(tmp_path / "net.pth", foreign("twtygqyy") | slopes)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == (
        f"{path}: an SRDenseNet with PReLU, whose code puts most maps through their slope twice, which no network here "
        "does; expected twtygqyy's with ReLU"
    )


@pytest.mark.parametrize(
    ("dialect", "arguments", "text"),
    [
        ("yjn870", {"scale": 2}, "3, with"),
        ("yjn870", {"bottleneck_activation": False}, "3, with"),
        ("yjn870", {"tail_bias": False}, "3, with"),
        ("twtygqyy", {}, "2, without"),
    ],
)
def test_a_network_that_the_library_does_not_have_is_not_written(tmp_path, dialect, arguments, text):
    card = Card(
        "sr", "srdensenet", {"num_blocks": 2, "num_layers": 2, "growth_rate": 4, "num_features": 8, **arguments}
    )
    path = tmp_path / "theirs.pth"
    with pytest.raises(CheckpointError) as error:
        write_foreign(create_model("srdensenet", **card.arguments).state_dict(), card, dialect, path)
    assert str(error.value) == (
        f"{path}: networks of {dialect} enlarge twice by kernels of {text} biases behind the dense blocks and an "
        "activation in the bottleneck, and this one does not"
    )


@pytest.mark.parametrize("dialect", LAYERS)
def test_a_file_that_is_not_all_of_a_network_fails_with_its_reason(tmp_path, dialect):
    state = foreign(dialect)
    del state["reconstruction.weight"]
    path = save(tmp_path / "net.pth", state)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == (
        f"{path}: begins like weights of {dialect}, but is not all of a network: it lacks reconstruction.weight"
    )
    state = foreign(dialect)
    del state["deconv.2.weight"]
    path = save(path, state)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == f"{path}: an SRDenseNet with 1 transposed convolutions; expected 2"

"""RRDBNet in four layouts, against spandrel's ESRGAN with the same weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from densekit.cards import Card
from densekit.dialects import open_foreign, read_foreign, write_foreign
from densekit.errors import CheckpointError
from densekit.models import create_model

SIZES = {"num_features": 16, "num_blocks": 2}  # growth_rate 32, which spandrel takes for granted
WRITTEN = ("basicsr", "esrgan", "esrgan-old", "esrgan-plus")


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def spandrels(state: dict[str, Tensor]):
    """Returns the descriptor that spandrel makes of a state dict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spandrel import ModelLoader

        return ModelLoader().load_from_state_dict(dict(state))


def foreign(dialect: str, scale: int = 4, *, unshuffle: bool = True) -> dict[str, Tensor]:
    """Returns a state dict made name by name as the library's own network has it, with random weights."""
    factor = max(1, 4 // scale) if unshuffle else 1
    num_ups = (scale * factor).bit_length() - 1
    seen, features, growth, blocks = 3 * factor**2, SIZES["num_features"], 32, SIZES["num_blocks"]
    is_old = dialect in ("esrgan-old", "esrgan-plus")
    after = 3 * num_ups
    names = {
        "basicsr": ("conv_first", "body.{}.rdb{}.conv{}", "conv_body", "conv_up{}", "conv_hr", "conv_last"),
        "esrgan": ("conv_first", "RRDB_trunk.{}.RDB{}.conv{}", "trunk_conv", "upconv{}", "HRconv", "conv_last"),
    }.get(
        dialect,
        (
            "model.0",
            "model.1.sub.{}.RDB{}.conv{}.0",
            f"model.1.sub.{blocks}",
            "",
            f"model.{after + 2}",
            f"model.{after + 4}",
        ),
    )
    first, dense, trunk, up, hr, last = names
    shapes = {first: (features, seen), trunk: (features, features), hr: (features, features), last: (3, features)}
    for n in range(blocks):
        for i in (1, 2, 3):
            for j in range(1, 6):
                out = growth if j < 5 else features
                shapes[dense.format(n, i, j)] = (out, features + (j - 1) * growth)
    for k in range(1, num_ups + 1):
        shapes[f"model.{3 * k}" if is_old else up.format(k)] = (features, features)
    state = {}
    for name, (out, channels) in shapes.items():
        state[f"{name}.weight"] = torch.randn(out, channels, 3, 3) / (9 * channels) ** 0.5
        state[f"{name}.bias"] = torch.randn(out) / 10
    if dialect == "esrgan-plus":
        for n in range(blocks):
            for i in (1, 2, 3):
                weight = torch.randn(growth, features, 1, 1) / features**0.5
                state[f"model.1.sub.{n}.RDB{i}.conv1x1.weight"] = weight
    return state


def save(path: Path, state: dict) -> Path:
    torch.save(state, path)
    return path


CASES = [
    *(("basicsr", scale, True) for scale in (4, 2, 1)),
    *(("esrgan", scale, unshuffle) for scale, unshuffle in ((4, True), (2, False), (2, True))),
    *(
        ("esrgan-old", scale, unshuffle)
        for scale, unshuffle in ((8, True), (4, True), (2, False), (1, False), (1, True))
    ),
    *(("esrgan-plus", scale, True) for scale in (4, 2)),
]


@pytest.mark.parametrize(("dialect", "scale", "unshuffle"), CASES)
def test_every_layout_gives_the_picture_that_spandrel_gives(tmp_path, dialect, scale, unshuffle):
    state = foreign(dialect, scale, unshuffle=unshuffle)
    reference = spandrels(state)
    net, card, report = open_foreign(save(tmp_path / "4x.pth", state))
    assert (report.dialect, card.model, card.arguments["scale"]) == (dialect, "rrdbnet", scale)
    assert {k: card.arguments[k] for k in SIZES} == SIZES
    assert not report.ignored
    assert not report.filled
    assert (net.scale, reference.scale, reference.input_channels) == (scale, scale, card.arguments["in_channels"])
    x = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        expected = reference.model.eval()(x)
        y = net.eval()(x)
    assert y.shape == (1, 3, 16 * scale, 24 * scale)
    assert expected.std() > 0.01
    assert (y - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("wrapped", [
    lambda state: {"params_ema": state, "params": {name: 0 * t for name, t in state.items()}},
    lambda state: {"state_dict": {f"generator.{name}": t for name, t in state.items()}},
    lambda state: {f"module.{name}": t for name, t in state.items()},
    lambda state: {
        "state_dict": {
            **{f"generator_ema.{name}": t for name, t in state.items()},
            **{f"generator.{name}": 0 * t for name, t in state.items()},
            "discriminator.conv0.weight": torch.zeros(1),
        }
    },
])  # fmt: skip
def test_what_programs_wrap_around_the_weights_is_taken_off(tmp_path, wrapped):
    state = foreign("basicsr")
    net, _, report = open_foreign(save(tmp_path / "net.pth", wrapped(state)))
    assert torch.equal(net.conv_first.weight, state["conv_first.weight"])
    assert torch.equal(net.body[1].rdb3.fusion.bias, state["body.1.rdb3.conv5.bias"])
    assert report.notes


def test_real_esrgans_network_for_anime_has_six_blocks(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "num_blocks", 6)
    net, card, _ = open_foreign(save(tmp_path / "anime.pth", {"params_ema": foreign("basicsr")}))
    assert card.arguments["num_blocks"] == len(net.body) == 6


@pytest.mark.parametrize("dialect", WRITTEN)
def test_ours_and_theirs_and_ours_again_are_the_same_bytes(tmp_path, dialect):
    card = Card("sr", "rrdbnet", {"scale": 2, "plus": dialect == "esrgan-plus", "growth_rate": 8, **SIZES})
    ours = create_model("rrdbnet", **card.arguments).state_dict()
    path = tmp_path / "theirs.pth"
    write_foreign(ours, card, dialect, path)
    theirs = torch.load(path, weights_only=True)
    assert theirs.keys() == foreign(dialect, 2).keys()
    back, card_back, report = read_foreign(path)
    assert (card_back, report.dialect) == (card, dialect)
    assert safetensors.torch.save(back) == safetensors.torch.save(dict(ours))


@pytest.mark.parametrize("dialect", ["basicsr", "esrgan", "esrgan-old", "esrgan-plus"])
def test_theirs_and_ours_and_theirs_again_are_the_same_bytes(tmp_path, dialect):
    state = foreign(dialect)
    tensors, card, _ = read_foreign(save(tmp_path / "theirs.pth", state))
    write_foreign(tensors, card, dialect, tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert safetensors.torch.save(again) == safetensors.torch.save(state)


@pytest.mark.parametrize(
    ("dialect", "arguments", "message"),
    [
        (
            "basicsr",
            {"scale": 2, "unshuffle": False},
            "networks of basicsr double the size 2 times, and this one 1 times; choose esrgan-old",
        ),
        (
            "esrgan",
            {"scale": 8},
            "networks of esrgan double the size 1 or 2 times, and this one 3 times; choose esrgan-old",
        ),
        (
            "basicsr",
            {"plus": True},
            "blocks of basicsr have no 1x1 convolution beside their layers, and these have one; choose esrgan-plus",
        ),
        (
            "esrgan-plus",
            {},
            "blocks of esrgan-plus have a 1x1 convolution beside their layers, and these have none; choose basicsr",
        ),
    ],
)
def test_a_network_that_the_library_does_not_have_is_not_written(tmp_path, dialect, arguments, message):
    card = Card("sr", "rrdbnet", {**SIZES, **arguments})
    tensors = create_model("rrdbnet", **card.arguments).state_dict()
    with pytest.raises(CheckpointError) as error:
        write_foreign(tensors, card, dialect, tmp_path / "theirs.pth")
    assert str(error.value) == f"{tmp_path}/theirs.pth: {message}"
    assert not list(tmp_path.iterdir())


def change(state: dict[str, Tensor], **changes: object) -> dict[str, Tensor]:
    """Returns a state with tensors replaced, or taken out where they are None."""
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("dialect", "changes", "message"),
    [
        (
            "basicsr",
            {"body.1.rdb2.conv3.weight": None},
            "lacks body.1.rdb2.dense.denselayer3.conv.weight (1 in all) for rrdbnet",
        ),
        (
            "basicsr",
            {"body.0.rdb1.conv6.weight": torch.zeros(4)},
            "has the unknown body.0.rdb1.dense.denselayer6.conv.weight (1 in all) for rrdbnet",
        ),
        ("esrgan", {"HRconv.bias": torch.zeros(5)}, "conv_hr.bias is (5,), but rrdbnet needs (16,)"),
        (
            "esrgan",
            {"conv_first.weight": torch.zeros(16, 3, 5, 5)},
            "conv_first.weight is (16, 3, 5, 5), but rrdbnet needs (16, 3, 3, 3)",
        ),
        (
            "esrgan-old",
            {"model.11.weight": torch.zeros(3)},
            "an ESRGAN of 12 modules in a row; expected one of 5, 8, 11, 14",
        ),
        (
            "esrgan-old",
            {"model.999999999.weight": torch.zeros(3)},
            "an ESRGAN of 1000000000 modules in a row; expected one of 5, 8, 11, 14",
        ),
        (
            "esrgan-old",
            {"model.0.weight": torch.zeros(16, 48, 3, 3), "model.6.weight": None, "model.6.bias": None},
            "an RRDBNet that folds 4x4 pixels and doubles the size 1 times; expected 2 times",
        ),
        (
            "basicsr",
            {"conv_hr.weight": torch.full((16, 16, 3, 3), torch.nan)},
            "conv_hr.weight holds values that are not finite; training went wrong, take an older one",
        ),
    ],
)
def test_a_file_that_is_not_all_of_a_network_fails_with_its_reason(tmp_path, dialect, changes, message):
    path = save(tmp_path / "net.pth", change(foreign(dialect), **changes))
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == f"{path}: {message}"


def test_the_tensors_that_were_read_stay_as_they_are(tmp_path):
    from densekit.dialects import recognise

    state = foreign("esrgan-plus")
    before = {name: tensor.clone() for name, tensor in state.items()}
    found = recognise(state).to_ours(state)
    assert len(found.tensors) == len(before)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())

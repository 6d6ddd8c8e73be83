"""What densekit writes for other libraries: it loads there, and it comes back as it was."""

from __future__ import annotations

import dataclasses
import json

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision

from densekit.cards import Card, is_ours, read_card
from densekit.checkpoint import load_model, read_tensors
from densekit.dialects import Changes, convert, dialect_names, open_foreign, read_foreign, write_foreign
from densekit.dialects.dialect import NOTE
from densekit.errors import CheckpointError, ConfigError
from tests.dialects.conftest import CARD, SMALL, largest_difference
from tests.dialects.test_densenet_dialects import monais, smps, timms, torchvisions

CIFAR = {"growth_rate": 6, "block_config": [2, 2, 2], "stem": "cifar", "num_init_features": 12, "num_classes": 10}
BACK = [
    *(("densenet", SHAPE, name) for name in ("torchvision", "torchvision-legacy", "timm", "smp", "monai", "gpleiss")
      for SHAPE in [CARD.arguments]),
    ("densenet", CIFAR, "gpleiss"),
    ("densenet", CIFAR, "andreasveit"),
    ("densenet", {**CIFAR, "bn_size": None, "compression": 1.0}, "andreasveit"),
]  # fmt: skip


@pytest.mark.parametrize(("half", "suffix"), [(False, ".safetensors"), (True, ".pth")], ids=["float32", "float16"])
@pytest.mark.parametrize(("model", "arguments", "dialect"), BACK)
def test_there_and_back_gives_the_same_bytes(model, arguments, dialect, half, suffix, own, tmp_path):
    source = own(dataclasses.replace(CARD, model=model, arguments=arguments), half=half)
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    convert(source, there, to=dialect)
    assert not is_ours(there)
    convert(there, back)
    assert back.read_bytes() == source.read_bytes()


def test_every_dialect_that_can_be_written_is_tried():
    assert {name for _, _, name in BACK} | {"keras"} == set(dialect_names("densenet", written=True))


@pytest.mark.parametrize(
    ("dialect", "build"),
    [("torchvision", torchvisions), ("timm", timms), ("monai", monais)],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_is_written_loads_strictly_in_its_library(dialect, build, suffix, own, tmp_path, picture):
    source, there = own(), tmp_path / f"there{suffix}"
    convert(source, there, to=dialect)
    theirs = build()
    state = torch.load(there, weights_only=True) if suffix == ".pt" else safetensors.torch.load_file(there)
    theirs.load_state_dict(state, strict=True)
    assert largest_difference(theirs, load_model(source)[0], picture) <= 1e-5


def test_what_is_written_loads_in_smp(own, tmp_path, picture):
    source = own()
    convert(source, tmp_path / "there.safetensors", to="smp")
    theirs = smps()
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "there.safetensors"))
    ours = load_model(source)[0].eval()
    with torch.inference_mode():
        pooled = torch.relu(theirs.eval()(picture)[-1]).mean((2, 3))
        assert torch.allclose(ours.classifier(pooled), ours(picture), atol=1e-5)


def test_the_card_stands_where_no_library_looks(own, tmp_path):
    source = own()
    for name in ("there.safetensors", "there.pth"):
        convert(source, tmp_path / name, to="torchvision")
    with safetensors.safe_open(tmp_path / "there.safetensors", "pt") as file:
        assert file.metadata().keys() == {NOTE}
        note = json.loads(file.metadata()[NOTE])
    assert note["card"]["licence"] == "CC0"
    assert torch.load(tmp_path / "there.pth", weights_only=True).keys() == read_tensors(source)[0].keys()
    assert read_foreign(tmp_path / "there.pth")[1] == read_card(source)


def test_weights_that_another_program_saved_anew_have_a_card_of_their_own(own, tmp_path):
    convert(own(), tmp_path / "there.pth", to="torchvision")
    torch.save(torch.load(tmp_path / "there.pth", weights_only=True), tmp_path / "again.pth")
    card = read_foreign(tmp_path / "again.pth")[1]
    assert (card.licence, card.step, card.metrics) == ("", 0, {})
    assert card.arguments == CARD.arguments


def test_the_same_weights_give_the_same_file(own, tmp_path):
    source = own()
    for name in ("one.safetensors", "other.safetensors", "one.pth", "other.pth"):
        convert(source, tmp_path / name, to="monai")
    for suffix in ("safetensors", "pth"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"other.{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "dialect", "message"),
    [
        (CIFAR, "torchvision", "networks of torchvision have the ImageNet stem, but this one has not"),
        ({**SMALL, "bn_size": None}, "monai", "networks of monai have bottlenecks, but this one has not"),
        (
            {**SMALL, "compression": 1.0},
            "smp",
            "networks of smp have transitions that keep half of the maps, but this one has not",
        ),
        ({**SMALL, "num_classes": 0}, "torchvision", "networks of torchvision have a classifier, but this one has not"),
        ({**SMALL, "num_init_features": 12}, "timm", "networks of timm have a stem of 2 k maps, but this one has not"),
        ({**SMALL, "block_config": [1, 1]}, "smp", "networks of smp have four dense blocks, but this one has not"),
        (
            SMALL,
            "andreasveit",
            "networks of andreasveit have the CIFAR stem of 2 k maps, three blocks of one length, and bottlenecks of "
            "4 k or none, but this one has not",
        ),
    ],
)
def test_a_network_that_a_library_does_not_have_is_not_written_for_it(arguments, dialect, message, own, tmp_path):
    source, there = own(Card("encoder", "densenet", arguments)), tmp_path / "there.safetensors"
    with pytest.raises(CheckpointError) as error:
        convert(source, there, to=dialect)
    assert str(error.value) == f"{there}: {message}; not written"
    assert not there.exists()


def test_a_suffix_that_a_dialect_is_not_written_with_is_refused(own, tmp_path):
    tensors, card = read_tensors(own())
    with pytest.raises(ConfigError, match=r"x\.npz: files of torchvision end with \.safetensors, \.pth, \.pt, \.bin$"):
        write_foreign(tensors, card, "torchvision", tmp_path / "x.npz")
    with pytest.raises(ConfigError, match=r"x\.pth: files of keras end with \.h5$"):
        write_foreign(tensors, card, "keras", tmp_path / "x.pth")


def test_a_dialect_of_another_network_is_refused(tiny_sr, tmp_path):
    with pytest.raises(ConfigError, match=r"dialect 'torchvision': none of rdn \(known: "):
        convert(tiny_sr, tmp_path / "x.pth", to="torchvision")


@pytest.mark.parametrize(
    "note",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"sha256": ""}',
        '{"format": 1}',
        '{"format": 1, "card": {"task": "encoder"}, "kept": {}}',
        '{"format": 2, "card": {"task": "encoder", "model": "densenet", "arguments": {}}, "kept": {}}',
        '{"format": 1, "card": {"task": "encoder", "model": "densenet", "arguments": {"mean": "abc"}}, "kept": {}}',
        '{"format": 1, "card": {"task": "encoder", "model": "densenet", "arguments": {}}, "kept": {"x": [[1], 2]}}',
    ],
)
def test_a_note_that_is_none_is_refused(note, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(torchvisions().state_dict(), path, metadata={NOTE: note})
    with pytest.raises(
        CheckpointError, match=r"x\.safetensors: (the note that densekit left|its description|format 2)"
    ) as error:
        read_foreign(path)
    assert "\n" not in str(error.value)


def test_a_note_does_not_make_weights_those_of_another_network(own, tmp_path):
    convert(own(), tmp_path / "there.safetensors", to="torchvision")
    with safetensors.safe_open(tmp_path / "there.safetensors", "pt") as file:
        metadata = file.metadata()
    other = torchvision.models.DenseNet(8, (1, 1), 16, 2, 0, 5).state_dict()
    safetensors.torch.save_file(other, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"other\.safetensors: lacks features\.denseblock"):
        open_foreign(tmp_path / "other.safetensors")


def test_statistics_become_part_of_the_network_and_its_figures_go(own, tmp_path, picture):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    source = own()
    card, _ = convert(source, tmp_path / "new.safetensors", changes=Changes(mean=mean, std=std, licence="MIT"))
    assert card == dataclasses.replace(
        CARD, arguments={**CARD.arguments, "mean": mean, "std": std}, metrics={}, licence="MIT"
    )
    assert read_card(tmp_path / "new.safetensors") == card
    new, old = load_model(tmp_path / "new.safetensors")[0].eval(), load_model(source)[0].eval()
    with torch.inference_mode():
        normalized = torchvision.transforms.functional.normalize(picture, mean, std)
        assert torch.allclose(new(picture), old(normalized), atol=1e-6)


def test_a_network_of_0_to_255_becomes_one_of_0_to_1(tiny_sr, tmp_path):
    convert(tiny_sr, tmp_path / "new.safetensors", changes=Changes(value_range=255))
    new, old = load_model(tmp_path / "new.safetensors")[0].eval(), load_model(tiny_sr)[0].eval()
    x = torch.rand(1, 3, 12, 10)
    with torch.inference_mode():
        assert torch.allclose(new(x), old(255 * x) / 255, atol=1e-6)
        assert not torch.allclose(new(x), old(x), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (Changes(mean=[0.5]), "mean has 1 values: expected 3, one for each channel"),
        (Changes(classes=["a"] * 5), "--classes: for segmentation, but densenet is for encoder"),
        (Changes(value_range=255), "--value-range: for super-resolution, but densenet is for encoder"),
    ],
)
def test_a_change_that_a_network_has_no_place_for_is_refused(changes, message, own, tmp_path):
    with pytest.raises(ConfigError) as error:
        convert(own(), tmp_path / "new.safetensors", changes=changes)
    assert str(error.value) == message
    assert not (tmp_path / "new.safetensors").exists()


def test_classes_get_names_if_there_are_as_many(tiny_seg, tiny_sr, tmp_path):
    card, _ = convert(tiny_seg, tmp_path / "new.safetensors", changes=Changes(classes=["a", "b", "c"]))
    assert card.classes == read_card(tmp_path / "new.safetensors").classes == ("a", "b", "c")
    with pytest.raises(ConfigError, match=r"--classes: 2 names, but fc_densenet tells 3 classes apart$"):
        convert(tiny_seg, tmp_path / "new.safetensors", changes=Changes(classes=["a", "b"]))
    with pytest.raises(ConfigError, match=r"--mean: rdn takes images in 0\.\.1 as they are, without a mean$"):
        convert(tiny_sr, tmp_path / "new.safetensors", changes=Changes(mean=[0.5, 0.5, 0.5]))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_kinds_of_numbers_are_stored_as_float32(kind, save, tmp_path):
    state = {n: t.to(kind) if t.is_floating_point() else t for n, t in torchvisions().state_dict().items()}
    convert(save(state), tmp_path / "new.safetensors")
    tensors = read_tensors(tmp_path / "new.safetensors")[0]
    assert {t.dtype for t in tensors.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(t, state[n].to(t.dtype)) for n, t in tensors.items())

"""Files that are no weights, or unsafe: each is one line, and nothing in them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from densekit.dialects import open_foreign, read_foreign
from densekit.dialects.files import read_contents
from densekit.errors import CheckpointError
from densekit.pretrained import open_model
from tests.dialects.test_densenet_dialects import torchvisions


class Trap:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Module(nn.Module):
    """A network that its author saved whole."""


def as_torch(content: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def as_safetensors() -> bytes:
    return safetensors.torch.save({"features.conv0.weight": torch.rand(8, 3, 7, 7)})


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 32342954\n"
PICKLED = (
    "holds more than tensors, such as a pickled module, and loading that can run code; refused. Where it was made, "
    "save `model.state_dict()` instead"
)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.pth", lambda: as_torch(Module()), PICKLED),
        ("x.pth", lambda: as_torch({"epoch": 1, "model": Module()}), PICKLED),
        ("x.pth", lambda: as_torch(Module(), _use_new_zipfile_serialization=False), PICKLED),
        ("x.pth", lambda: LFS, "a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`"),
        ("x.safetensors", lambda: LFS, "a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`"),
        ("x.pth", lambda: b"", "an empty file; copy or download it again"),
        (
            "x.pth",
            lambda: b"\n<!DOCTYPE html><html>Sign in</html>",
            "a web page in place of weights; download the file itself, not the page about it",
        ),
        ("x.pth", lambda: b"hello", "no weights, or damaged ones; expected .safetensors, .pth, .npz, .h5 or .keras"),
        ("x.pth", lambda: as_torch({"a": torch.rand(99)})[:-40], "a damaged or cut file; copy or download it again"),
        ("x.npz", lambda: b"PK\x03\x04" + bytes(30), "a damaged or cut file; copy or download it again"),
        (
            "x.pth",
            lambda: as_torch({"state": {0: {"exp_avg": torch.rand(3)}}, "param_groups": [], "lr": 0.1}),
            "holds no weights by name (it has state, param_groups, lr); expected those of a network",
        ),
        (
            "x.pth",
            lambda: as_torch([torch.rand(3)]),
            "holds no weights by name (it has a list); expected those of a network",
        ),
        ("x.pth", lambda: as_torch({}), "holds no weights by name (it has a dict); expected those of a network"),
        (
            "x.safetensors",
            lambda: safetensors.torch.save({}),
            "holds no weights at all; expected those of a network",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("x.") else "",
)  # fmt: skip
def test_a_file_that_is_no_weights_is_one_clear_line(name, data, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(data())
    for way in (read_contents, read_foreign, open_foreign, open_model):
        with pytest.raises(CheckpointError) as error:
            way(path)
        assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize("protocol", ["zip", "legacy", "bare"])
def test_what_a_pickle_would_do_is_not_done(protocol, tmp_path):
    target, path = tmp_path / "made", tmp_path / "x.pth"
    content = {"state_dict": torchvisions().state_dict(), "trap": Trap(target)}
    if protocol == "bare":
        path.write_bytes(pickle.dumps(Trap(target)))
    else:
        path.write_bytes(as_torch(content, _use_new_zipfile_serialization=protocol == "zip"))
    with pytest.raises(CheckpointError, match=r"x\.pth: holds more than tensors, .* refused"):
        open_model(path)
    assert not target.exists()
    torch.load(path, weights_only=False) if protocol != "bare" else pickle.loads(path.read_bytes())
    assert target.exists(), "the trap was none"


def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:  # the parts that torch.jit.save writes and torch.save does not
        for name in ("x/data.pkl", "x/constants.pkl", "x/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(CheckpointError, match=r"x\.pt: a TorchScript program, which would be run; refused"):
        read_foreign(path)


def test_objects_in_an_npz_are_not_unpickled(tmp_path):
    target = tmp_path / "made"
    np.savez(tmp_path / "x.npz", arr_0=np.array([Trap(target)], dtype=object))
    with pytest.raises(
        CheckpointError, match=r"x\.npz: not a readable \.npz of numbers: Object arrays cannot be loaded"
    ):
        read_foreign(tmp_path / "x.npz")
    assert not target.exists()


def test_a_file_that_unpacks_to_more_than_a_network_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", arr_0=np.zeros(300_000))
    monkeypatch.setattr("densekit.dialects.files.MAX_FILE", 1 << 20)
    with pytest.raises(CheckpointError, match=r"x\.npz: unpacks to more than 1 MiB; refused"):
        read_foreign(tmp_path / "x.npz")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_that_was_cut_anywhere_is_one_line(kind, share, tmp_path):
    content = {"features.conv0.weight": torch.rand(8, 3, 7, 7), "features.norm0.weight": torch.rand(8)}
    if kind == "safetensors":
        data = safetensors.torch.save(content)
    else:
        data = as_torch(content, _use_new_zipfile_serialization=kind == "zip")
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"x\.\w+: .*(damaged|cut|no weights)") as error:
        open_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(30))
def test_a_file_with_a_wrong_byte_is_weights_or_one_line(seed, tmp_path):
    rng = np.random.default_rng(seed)
    data = bytearray([as_torch({"a": torch.rand(9)}), as_safetensors()][seed % 2])
    for place in rng.integers(0, len(data), 3):
        data[place] = rng.integers(256)
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:  # at the latest since it is no network
        open_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mark", [0x80, 0x50])
def test_safetensors_are_known_whatever_their_first_bytes(mark, tmp_path):
    tensors = torchvisions().state_dict()
    path = tmp_path / "x.safetensors"
    for padding in range(0, 300, 8):  # until the length of the header begins as another format does
        data = safetensors.torch.save(tensors, metadata={"note": "x" * padding})
        if data[0] == mark:
            break
    assert data[0] == mark
    path.write_bytes(data)
    assert read_foreign(path)[2].dialect == "torchvision"


def test_a_file_that_is_missing_is_said_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pth: cannot be read: No such file or directory$"):
        read_foreign(tmp_path / "gone.pth")


def test_names_with_control_characters_do_not_break_the_line(tmp_path):
    torch.save({"a\nb\x1b[31m": torch.rand(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as error:
        read_foreign(tmp_path / "x.pth")
    assert r"a\nb\x1b[31m (2,)" in str(error.value)
    assert str(error.value).isprintable()


def test_weights_of_another_device_are_read(tmp_path):
    # A file of tensors that were on a GPU names it, and is to load where there is none.
    data = as_torch(torchvisions().state_dict(), _use_new_zipfile_serialization=False)
    path = tmp_path / "x.pth"
    path.write_bytes(data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert b"cuda:0" in path.read_bytes()
    assert open_foreign(path)[2].dialect == "torchvision"


def test_the_report_is_a_line_and_a_line_for_each_kind(save):
    state = torchvisions().state_dict()
    report = read_foreign(save({f"module.{name}": tensor for name, tensor in state.items()}))[2]
    assert (
        str(report)
        == f"{report.source}: densenet in the words of torchvision; {len(state)} renamed, 0 ignored, 0 filled in"
    )
    lines = list(report.lines())
    assert lines == [
        "renamed: module.features.conv0.weight -> features.conv0.weight, module.features.norm0.weight -> "
        "features.norm0.weight, module.features.norm0.bias -> features.norm0.bias, and "
        f"{len(state) - 3} more"
    ]
    json.dumps(report.renamed)

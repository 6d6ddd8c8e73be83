from __future__ import annotations

import hashlib
import io
import os
import pickle
import random

import pytest
import torch
from torch import nn

from densekit.errors import CheckpointError
from densekit.train import state as states
from densekit.train.state import load_state, save_state


def make_state(step=3):
    torch.manual_seed(step)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 4)).square().mean().backward()
    optimizer.step()
    return {
        "step": step,
        "best": -float("inf"),
        "net": net.state_dict(),
        "average": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": "abc",
    }


def sealed(payload):
    return states._HEAD.pack(states._MAGIC, len(payload), hashlib.sha256(payload).digest()) + payload


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    state = make_state()
    save_state(tmp_path / "s.dk", state)
    found = load_state(tmp_path / "s.dk")
    assert found.keys() == state.keys()
    assert (found["step"], found["best"], found["config"]) == (3, -float("inf"), "abc")
    assert all(torch.equal(found["net"][name], value) for name, value in state["net"].items())
    moments, known = found["optimizer"]["state"], state["optimizer"]["state"]
    assert all(torch.equal(moments[i][key], value) for i in known for key, value in known[i].items())
    assert found["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]


def test_a_state_saved_again_has_the_same_bytes(tmp_path):
    """Also one that came from a file, where no string is the same object as a literal in the code."""
    save_state(tmp_path / "a.dk", make_state())
    save_state(tmp_path / "b.dk", make_state())
    save_state(tmp_path / "c.dk", load_state(tmp_path / "a.dk"))
    assert len({(tmp_path / name).read_bytes() for name in ("a.dk", "b.dk", "c.dk")}) == 1


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "s.dk"
    save_state(path, make_state())
    data = path.read_bytes()
    generator = random.Random(1)
    for _ in range(500):
        bit = generator.randrange(8 * len(data))
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_state(path)
    path.write_bytes(data)
    load_state(path)


def test_without_the_seal_torch_loads_damaged_weights(tmp_path):
    """The positive control of the test above: the flips would go unseen."""
    buffer = io.BytesIO()
    torch.save(make_state(), buffer)
    data = buffer.getvalue()
    weights = make_state()["net"]["0.weight"].numpy().tobytes()
    damaged = bytearray(data)
    damaged[data.index(weights)] ^= 1
    assert not torch.equal(
        torch.load(io.BytesIO(damaged), weights_only=True)["net"]["0.weight"], make_state()["net"]["0.weight"]
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:20], "too short for a training state; damaged"),
        (lambda data: data[:-1], "its bytes are not those that were written; damaged"),
        (lambda data: data + b"\0", "its bytes are not those that were written; damaged"),
        (lambda data: b"X" + data[1:], "not a training state of this densekit"),
        (lambda data: sealed(b"no archive"), "cannot be read: "),
        (lambda data: sealed(pickle.dumps({"step": 1})), "cannot be read: "),
    ],
)
def test_a_damaged_state_is_named_with_its_fault(tmp_path, damage, message):
    path = tmp_path / "s.dk"
    save_state(path, make_state())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError) as error:
        load_state(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_a_missing_state_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"s\.dk: cannot be read: No such file or directory"):
        load_state(tmp_path / "s.dk")


@pytest.mark.parametrize("content", [[1, 2], {"step": 1}])
def test_another_archive_of_torch_is_no_state(tmp_path, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (tmp_path / "s.dk").write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(CheckpointError, match="not a training state of this densekit"):
        load_state(tmp_path / "s.dk")


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_state_that_would_run_code_is_refused_and_runs_none(tmp_path):
    buffer = io.BytesIO()
    torch.save({**make_state(), "settings": Touch(tmp_path / "canary")}, buffer)
    (tmp_path / "s.dk").write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(tmp_path / "s.dk")
    assert not (tmp_path / "canary").exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)  # the positive control: unguarded, it does run
    assert (tmp_path / "canary").exists()


def test_a_write_that_fails_leaves_the_old_state_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "s.dk"
    save_state(path, make_state())
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_state(path, make_state(4))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.dk"]

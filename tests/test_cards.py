from __future__ import annotations

import json
import subprocess
import sys

import pytest

from densekit import cards
from densekit.cards import Card, card_from, foreign_kind, read_card, split_header
from densekit.errors import CheckpointError

WHOLE = {"format": 1, "task": "seg", "model": "fc_densenet", "arguments": {"num_classes": 2}}


def file_of(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + body


def described(text: str) -> bytes:
    return file_of({"__metadata__": {"densekit": text}})


def test_a_card_is_read_without_torch_and_without_the_weights(tiny_seg):
    script = """if True:
        import pathlib, sys
        from densekit.cards import read_card
        print(read_card(sys.argv[1]))
        assert "torch" not in sys.modules
    """
    card = subprocess.run([sys.executable, "-c", script, tiny_seg], check=True, capture_output=True, text=True).stdout
    assert card.strip() == str(read_card(tiny_seg))
    assert read_card(tiny_seg).classes == ("road", "sky", "tree")
    assert read_card(tiny_seg).palette[0] == (128, 64, 128)


def test_a_card_needs_only_the_header_of_its_file(tiny_seg, tmp_path):
    data = tiny_seg.read_bytes()
    (tmp_path / "cut").write_bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    assert read_card(tmp_path / "cut") == read_card(tiny_seg)


def test_unknown_keys_of_a_newer_densekit_are_passed_over():
    assert card_from({**WHOLE, "mood": "good"}, "x").model == "fc_densenet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "x: format 2, but this densekit reads 1; update densekit"),
        ({"format": None}, "x: format None, but this densekit reads 1; update densekit"),
        ({"model": ["rdn"]}, "x: its description has an unusable model, so it is not one that densekit wrote; refused"),
        ({"arguments": [1]}, "has an unusable arguments"),
        ({"step": -1}, "has an unusable step"),
        ({"step": True}, "has an unusable step"),
        ({"metrics": 38.2}, "has an unusable metrics"),
        ({"classes": "sky"}, "has an unusable classes"),
        ({"classes": [1]}, "has an unusable classes"),
        ({"palette": [[1, 2]]}, "has an unusable palette"),
        ({"palette": [[1, 2, 256]]}, "has an unusable palette"),
        ({"licence": None}, "has an unusable licence"),
    ],
)
def test_a_description_of_other_kinds_is_refused(change, message):
    with pytest.raises(CheckpointError) as error:
        card_from({**WHOLE, **change}, "x")
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["task", "model", "arguments"])
def test_a_description_without_what_rebuilds_the_network_is_refused(key):
    with pytest.raises(CheckpointError, match=f"its description lacks {key}"):
        card_from({name: value for name, value in WHOLE.items() if name != key}, "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file; copy or download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer, not the weights themselves",
        ),
        (b"PK\x03\x04 archive of torch", "a pickled checkpoint, which can run code when loaded; refused"),
        (b"\x80\x02}q\x00.", "a pickled checkpoint, which can run code when loaded; refused"),
        (b"\x89PNG\r\n\x1a\n and more", "not a safetensors file, or a damaged one"),
        (file_of({"a": 1})[:-1], "not a safetensors file, or a damaged one"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "not a safetensors file, or a damaged one"),
        (
            file_of({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
            "weights without a densekit description",
        ),
        (described('{"sha256":"0","a":{"sha256":"1"}}'), "weights without a densekit description"),
        (described('{"sha256":"0"'), "its header is damaged; copy or download it again"),
        (described('["sha256":"0"]'), "its header is damaged; copy or download it again"),
        (file_of({"densekit": '{"sha256":"0"}'}), "its header is damaged; copy or download it again"),
        (file_of({"__metadata__": ['{"sha256":"0"}']}), "its header is damaged; copy or download it again"),
        (file_of(b'{"\\"sha256\\":\\"\xff'), "its header is damaged; copy or download it again"),
        (file_of(b'{"\\"sha256\\":\\"":' + b"[" * 100_000), "its header is damaged; copy or download it again"),
        (described('{"sha256":"0","n":' + "1" * 10_000 + "}"), "its header is damaged; copy or download it again"),
    ],
)
def test_what_is_no_checkpoint_is_named_as_what_it_seems_to_be(data, message, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        read_card(tmp_path / "w.safetensors")
    assert str(error.value).startswith(f"{tmp_path}/w.safetensors: {message}")
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"^name: "):
        split_header(data, "name")


def test_every_kind_of_foreign_file_gets_a_next_step():
    for data in (b"", b"version https://git-lfs", b"PK\x03\x04", b"\x80\x04", b"else"):
        assert any(word in foreign_kind(data) for word in ("copy or download", "git lfs pull", "reads .safetensors"))


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent: cannot be read: No such file or directory"):
        read_card(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"cannot be read: Is a directory"):
        read_card(tmp_path)


def test_a_file_larger_than_any_checkpoint_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "MAX_FILE", 1 << 20)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(CheckpointError, match="huge: larger than 1 MiB, as no network of ours is; refused"):
        cards.read_bytes(tmp_path / "huge")


def test_a_card_has_nothing_to_say_beside_what_it_must():
    assert Card("sr", "rdn", {"scale": 2}) == card_from(
        {"format": 1, "task": "sr", "model": "rdn", "arguments": {"scale": 2}}, "x"
    )

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import random
import resource
import time

import pytest
import safetensors.torch
import torch

from densekit.cards import SEAL, Card, read_card
from densekit.checkpoint import load_model, save_model
from densekit.errors import CheckpointError
from densekit.models import create_model

TINY = {"scale": 2, "num_features": 4, "num_blocks": 1, "num_layers": 1, "growth_rate": 4}
CARD = Card(
    "sr",
    "rdn",
    TINY,
    step=7,
    metrics={"psnr": 33.5, "protocol": "rdn-y", "data": "Set5"},
    data="T91 \N{MULTIPLICATION SIGN} 2",
    licence='CC0 "zero"',
    recipe='{"sha256":"' + "0" * 64 + '"}\nsecond line',  # looks like the seal, and is not
)


def make_net(card=CARD, seed=0):
    torch.manual_seed(seed)
    net = create_model(card.model, **card.arguments)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    return net


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_model(path, make_net(), CARD)
    return path


def write(path, tensors, **fields):
    """A file with a right seal, whatever it describes; made here after the format's rule, not by `save_model`."""
    text = json.dumps({"sha256": "0" * 64, "format": 1, **dataclasses.asdict(CARD), **fields}, separators=(",", ":"))
    data = safetensors.torch.save(tensors, metadata={"densekit": text})
    path.write_bytes(data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1))
    return path


def test_a_network_and_its_card_come_back(saved):
    net, card = load_model(saved)
    assert card == CARD == read_card(saved)
    expected = make_net().state_dict()
    assert net.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


def test_statistics_and_arguments_that_are_lists_come_back(tmp_path):
    arguments = {"num_classes": 2, "num_pools": 1, "num_layers": [1, 2, 1], "growth_rate": 4, "mean": [0.1, 0.2, 0.3]}
    card = Card("seg", "fc_densenet", arguments, classes=("a", "b"), palette=((0, 0, 0), (255, 1, 2)))
    net = make_net(card)
    net.train()(torch.rand(2, 3, 8, 8))
    save_model(tmp_path / "w", net, card)
    found, read = load_model(tmp_path / "w")
    assert read == card
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(found.eval()(x), net.eval()(x))
    counts = [value for name, value in found.state_dict().items() if name.endswith("num_batches_tracked")]
    assert all(count.dtype == torch.int64 for count in counts)
    assert {int(count) for count in counts} == {1}


def test_equal_weights_give_equal_files(saved, tmp_path):
    for i in range(20):
        save_model(tmp_path / f"{i}", make_net(), CARD)
        assert (tmp_path / f"{i}").read_bytes() == saved.read_bytes()
    net, card = load_model(saved)
    save_model(tmp_path / "again", net.to(memory_format=torch.channels_last), card)
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_the_file_is_one_for_every_reader_of_safetensors(saved):
    assert safetensors.torch.load_file(saved).keys() == make_net().state_dict().keys()


def test_half_files_have_half_the_size_and_lose_little(tmp_path, saved):
    save_model(tmp_path / "half", make_net(), CARD, half=True)
    header = int.from_bytes(saved.read_bytes()[:8], "little") + 8
    assert (tmp_path / "half").stat().st_size - header == pytest.approx((saved.stat().st_size - header) / 2, abs=16)
    found, expected = load_model(tmp_path / "half")[0].state_dict(), make_net().state_dict()
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=2**-11, atol=2**-25)


def test_half_files_keep_buffers_whole(tmp_path):
    card = Card("seg", "fc_densenet", {"num_classes": 1, "num_pools": 1, "num_layers": 1, "growth_rate": 4})
    net = make_net(card)
    name = next(name for name, _ in net.named_buffers() if name.endswith("running_var"))
    net.get_buffer(name).fill_(1e6 + 0.5)  # beyond float16
    save_model(tmp_path / "half", net, card, half=True)
    assert (load_model(tmp_path / "half")[0].get_buffer(name) == 1e6 + 0.5).all()


@pytest.mark.parametrize(("value", "half"), [(float("nan"), False), (float("inf"), False), (1e6, True)])
def test_weights_that_are_not_finite_are_not_written_over_good_ones(saved, value, half):
    before, net = saved.read_bytes(), make_net()
    net.sfe1.bias.data[0] = value
    with pytest.raises(CheckpointError, match=r"sfe1\.bias holds values that are not finite; nothing was written"):
        save_model(saved, net, CARD, half=half)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("half", [False, True])
def test_every_flipped_bit_is_noticed(tmp_path, half):
    path = tmp_path / "w"
    save_model(path, make_net(), CARD, half=half)
    data = path.read_bytes()
    generator = random.Random(2)
    for _ in range(500):
        bit = generator.randrange(8 * len(data))
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_model(path)
    path.write_bytes(data)
    load_model(path)


def test_safetensors_itself_does_not_notice_flipped_bits_in_weights(saved):
    """The positive control of the test above."""
    damaged = bytearray(saved.read_bytes())
    damaged[-1] ^= 1
    assert safetensors.torch.load(bytes(damaged)).keys() == make_net().state_dict().keys()


def test_a_damaged_file_says_so(saved):
    data = bytearray(saved.read_bytes())
    data[-3] ^= 4
    saved.write_bytes(data)
    message = r"tiny\.safetensors: SHA-256 of its bytes is \w{8}\.\. but its seal says \w{8}\.\.: damaged file; copy or"
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(saved)
    assert error.value.exit_code == 5


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1])
def test_every_truncated_file_is_refused(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors: .*(copy or download it again|damaged one)"):
        load_model(saved)


def test_appended_bytes_are_noticed(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="damaged file"):
        load_model(saved)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_checkpoint_is_refused_and_runs_nothing(tmp_path, zipped):
    buffer = io.BytesIO()
    torch.save({"w": Touch(tmp_path / "canary")}, buffer, _use_new_zipfile_serialization=zipped)
    (tmp_path / "w.pth").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"w\.pth: a pickled checkpoint, which can run code when loaded; refused"):
        load_model(tmp_path / "w.pth")
    assert not (tmp_path / "canary").exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # the positive control: unguarded, it does run
    assert (tmp_path / "canary").exists()


def test_foreign_weights_are_told_from_damaged_ones(tmp_path):
    safetensors.torch.save_file(make_net().state_dict(), tmp_path / "plain.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"weights without a densekit description.*expected a checkpoint that densekit"
    ):
        load_model(tmp_path / "plain.safetensors")


def changed(**tensors):
    state = {**make_net().state_dict(), **tensors}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"sfe1.bias": None, "sfe1.weight": None}, "lacks sfe1.bias (2 in all) for rdn"),
        ({"a\nb": torch.ones(1)}, r"has the unknown a\nb (1 in all) for rdn"),
        ({"sfe1.bias": torch.ones(5)}, "sfe1.bias is (5,), but rdn needs (4,)"),
        ({"sfe1.bias": torch.ones(4, dtype=torch.int64)}, "sfe1.bias is torch.int64, but rdn needs torch.float32"),
    ],
)
def test_weights_of_another_network_are_named(tmp_path, tensors, message):
    with pytest.raises(CheckpointError) as error:
        load_model(write(tmp_path / "w", changed(**tensors)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model": "rdm"},
            "describes no network of this densekit: model 'rdm': no such architecture; did you mean 'rdn'?",
        ),
        ({"model": "os.system"}, "describes no network of this densekit: model 'os.system': no such architecture"),
        ({"task": "seg"}, "says task seg, but rdn is for sr; refused"),
        ({"arguments": {"scael": 2}}, "describes no network of this densekit: model.scael: rdn takes no such argument"),
        ({"arguments": {"scale": 5}}, "describes no network of this densekit: scale=5: expected 1, 2, 3, 4 or 8"),
        ({"arguments": {"scale": "two"}}, "describes no network of this densekit: scale=two: expected 1, 2, 3, 4 or 8"),
        ({"arguments": {"num_layers": {}}}, "its argument num_layers is out of bounds; refused"),
        ({"arguments": {"num_layers": -5000}}, "its argument num_layers is out of bounds; refused"),
    ],
)
def test_descriptions_of_no_network_are_refused(tmp_path, fields, message):
    with pytest.raises(CheckpointError) as error:
        load_model(write(tmp_path / "w", changed(), **fields))
    assert message in str(error.value)


HOSTILE = [
    ("rdn", {"num_features": 4096, "growth_rate": 4096}),
    ("rdn", {"num_blocks": 4096, "num_layers": 4096}),
    ("rdn", {"num_blocks": 10**9}),
    ("rdn", {"num_features": 1e300}),
    ("rdn", {"scale": 4096, "upsampler": "pixelshuffledirect", "bicubic_skip": True, "num_features": 1}),
    ("rdn", {"scale": float("nan")}),
    ("rdn", {"upsampler": "x" * 10**6}),
    ("rdn", {"scale": [2] * 10**6}),
    ("fc_densenet", {"num_layers": [4096] * 255, "num_pools": 127}),
    ("fc_densenet", {"num_pools": 4096}),
    ("fc_densenet", {"mean": [0.5] * 256}),
    ("densenet", {"block_config": [4096] * 256}),
    ("densenet", {"block_config": [64, 64], "compression": float("inf")}),
    ("densenet_cifar", {"depth": 4000}),
    ("srdensenet", {"num_blocks": 4096, "num_layers": 4096}),
    ("rrdbnet", {"num_blocks": 4096, "num_features": 4096}),
]


@pytest.mark.parametrize(("model", "arguments"), HOSTILE)
def test_hostile_descriptions_are_refused_at_once_and_without_memory(tmp_path, model, arguments):
    path = write(tmp_path / "w", changed(), model=model, arguments=arguments)
    began, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB
    assert len(str(error.value)) < 1000


def test_a_file_of_the_right_kind_made_elsewhere_is_read(tmp_path):
    """The positive control of the tests above: what `write` makes is refused for its description alone."""
    assert load_model(write(tmp_path / "w", changed()))[1] == CARD


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Bytes flipped, cut out, put in or off, most of them in the header, under a seal that is right again."""
    end = 8 + int.from_bytes(data[:8], "little")
    body = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(end if generator.random() < 0.8 else len(body))
        kind = generator.randrange(4)
        if kind == 0:
            body[at] = generator.choice(b'0123456789"{}[]:,\\\xff\0')
        elif kind == 1:
            del body[at : at + generator.randint(1, 20)]
        elif kind == 2:
            body[at:at] = generator.randbytes(generator.randint(1, 20))
        else:
            del body[max(at, 1) :]
        end = min(end, len(body))
    header = int.from_bytes(body[:8], "little")
    if generator.random() < 0.5 and len(body) > 8:  # else the length of the header says that something is wrong
        header = max(0, min(header + len(body) - len(data), len(body) - 8))
        body[:8] = header.to_bytes(8, "little")
    start = bytes(body).find(SEAL) + len(SEAL)
    if start >= len(SEAL):
        body[start : start + 64] = b"0" * 64
        body[start : start + 64] = hashlib.sha256(body).hexdigest().encode()
    return bytes(body)


def test_mutated_files_under_a_right_seal_give_one_kind_of_error(saved):
    """F7: nothing but a CheckpointError of one line, or a network."""
    data, generator, refusals = saved.read_bytes(), random.Random(3), []
    for _ in range(600):
        saved.write_bytes(mutated(data, generator))
        try:
            load_model(saved)
        except CheckpointError as error:
            refusals.append(str(error))
    assert 400 < len(refusals) < 600  # some change weights or words alone and are loaded
    assert not any("\n" in text for text in refusals)
    assert len({text.split(": ", 1)[1][:20] for text in refusals}) > 8  # the mutations reach deep

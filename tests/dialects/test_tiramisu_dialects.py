"""FC-DenseNet in the words of pytorch_tiramisu and of its authors' Lasagne code, against networks written from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from densekit.cards import Card, read_card
from densekit.cli import main
from densekit.dialects import open_foreign, read_foreign, write_foreign
from densekit.dialects.tiramisu import without_class
from densekit.errors import CheckpointError, ConfigError
from densekit.models import create_model

NETS = {
    56: (12, (4,) * 11, 357),
    67: (16, (5,) * 11, 434),
    103: (16, (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4), 686),
}


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


class Layer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1)

    def forward(self, x):
        return self.conv(F.relu(self.norm(x)))


class Block(nn.Module):
    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(channels + i * growth, growth) for i in range(layers))

    def forward(self, x, *, only_new=False):
        made = []
        for layer in self.layers:
            y = layer(x)
            made.append(y)
            x = torch.cat([x, y], 1)
        return torch.cat(made, 1) if only_new else x


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return F.max_pool2d(self.conv(F.relu(self.norm(x))), 2)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convTrans = nn.ConvTranspose2d(channels, channels, 3, stride=2)


class Bottleneck(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.bottleneck = block


class Tiramisu(nn.Module):
    """The network of pytorch_tiramisu, by its names; gives log-probabilities as it does."""

    def __init__(self, growth: int, counts: tuple[int, ...], num_classes: int, init: int = 48) -> None:
        super().__init__()
        pools = len(counts) // 2
        self.firstconv = nn.Conv2d(3, init, 3, padding=1)
        self.denseBlocksDown, self.transDownBlocks = nn.ModuleList(), nn.ModuleList()
        channels, skips = init, []
        for layers in counts[:pools]:
            self.denseBlocksDown.append(Block(channels, growth, layers))
            channels += growth * layers
            skips.append(channels)
            self.transDownBlocks.append(Down(channels))
        self.bottleneck = Bottleneck(Block(channels, growth, counts[pools]))
        self.transUpBlocks, self.denseBlocksUp = nn.ModuleList(), nn.ModuleList()
        new = growth * counts[pools]
        for layers in counts[pools + 1 :]:
            self.transUpBlocks.append(Up(new))
            channels = new + skips.pop()
            self.denseBlocksUp.append(Block(channels, growth, layers))
            new = growth * layers
        self.finalConv = nn.Conv2d(channels + new, num_classes, 1)

    def forward(self, x):
        x, skips = self.firstconv(x), []
        for block, down in zip(self.denseBlocksDown, self.transDownBlocks, strict=True):
            x = block(x)
            skips.append(x)
            x = down(x)
        x = self.bottleneck.bottleneck(x, only_new=True)
        for up, block in zip(self.transUpBlocks, self.denseBlocksUp, strict=True):
            skip = skips.pop()
            x = up.convTrans(x)[..., : skip.shape[-2], : skip.shape[-1]]
            x = block(torch.cat([x, skip], 1), only_new=bool(skips))
        return F.log_softmax(self.finalConv(x), dim=1)


def random_tiramisu(growth: int, counts: tuple[int, ...], num_classes: int, init: int = 48) -> Tiramisu:
    """Returns the network with random weights and norms that have seen something."""
    net = Tiramisu(growth, counts, num_classes, init).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def save(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("num_classes", [11, 12])
@pytest.mark.parametrize("layers", NETS)
def test_the_three_nets_give_the_logits_of_pytorch_tiramisu(tmp_path, layers, num_classes):
    growth, counts, num_keys = NETS[layers]
    theirs = random_tiramisu(growth, counts, num_classes)
    state = theirs.state_dict()
    assert len(state) == num_keys
    path = save(tmp_path / "weights.pth", {"startEpoch": 9, "loss": 0.1, "error": 0.2, "state_dict": state})
    net, card, report = open_foreign(path)
    assert (report.dialect, card.task, card.bn_mode) == ("tiramisu", "seg", "running")
    assert card.arguments["num_classes"] == num_classes
    assert not report.ignored
    assert not report.filled
    x = torch.rand(1, 3, 40, 33)
    with torch.inference_mode():
        logits, expected = net.eval()(x), theirs(x)
    assert (F.log_softmax(logits, 1) - expected).abs().max() <= 1e-5
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert len(expected.argmax(1).unique()) > 1


SMALL = (4, (1, 2, 3, 2, 1), 5, 6)  # growth rate, layers, classes, first maps


def test_files_from_before_torch_0_4_1_lack_the_counters_which_are_filled_in(tmp_path):
    state = {k: v for k, v in random_tiramisu(*SMALL).state_dict().items() if not k.endswith("num_batches_tracked")}
    net, _, report = open_foreign(save(tmp_path / "weights.pth", state))
    assert len(report.filled) == 9 + 2
    assert net.bottleneck.denselayer1.norm1.num_batches_tracked == 0


def test_the_report_says_that_pictures_may_have_to_be_normalized(tmp_path):
    _, _, report = open_foreign(save(tmp_path / "weights.pth", random_tiramisu(*SMALL).state_dict()))
    assert "convert with --mean 0.41189,0.42513,0.43267 --std 0.27414,0.28507,0.28285" in report.notes[-1]


def test_ours_and_theirs_and_ours_again_are_the_same_bytes(tmp_path):
    state = random_tiramisu(*SMALL).state_dict()
    tensors, card, _ = read_foreign(save(tmp_path / "weights.pth", state))
    card = dataclasses.replace(card, classes=tuple("abcde"))
    write_foreign(tensors, card, "tiramisu", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert safetensors.torch.save(again) == safetensors.torch.save(dict(state))
    back, card_back, _ = read_foreign(tmp_path / "again.pth")
    assert card_back == card
    assert safetensors.torch.save(back) == safetensors.torch.save(tensors)


def test_a_network_that_normalizes_itself_is_not_written(tmp_path):
    card = Card("seg", "fc_densenet", {"num_pools": 2, "num_layers": 1, "mean": [0.4] * 3})
    path = tmp_path / "theirs.pth"
    with pytest.raises(CheckpointError) as error:
        write_foreign(create_model("fc_densenet", **card.arguments).state_dict(), card, "tiramisu", path)
    assert str(error.value) == (
        f"{path}: networks of tiramisu take normalized pictures, and this one normalizes them itself by its mean and "
        "std"
    )


def test_a_class_can_be_dropped(tmp_path):
    theirs = random_tiramisu(*SMALL)
    tensors, card, _ = read_foreign(save(tmp_path / "weights.pth", theirs.state_dict()))
    card = dataclasses.replace(card, classes=tuple("abcde"), metrics={"miou": 0.5})
    fewer, new = without_class(tensors, card, 1)
    assert new.arguments == {**card.arguments, "num_classes": 4}
    assert (new.classes, new.metrics) == (("a", "c", "d", "e"), {})
    assert tensors["classifier.bias"].shape == (5,)
    net = create_model(new.model, **new.arguments).eval()
    net.load_state_dict(fewer)
    x = torch.rand(1, 3, 12, 9)
    with torch.inference_mode():
        expected = theirs(x)[:, [0, 2, 3, 4]]
        assert (F.log_softmax(net(x), 1) - F.log_softmax(expected, 1)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("num_classes", "index", "message"),
    [
        (5, 5, "class 5: fc_densenet tells 5 classes apart, 0 to 4"),
        (5, -1, "class -1: fc_densenet tells 5 classes apart, 0 to 4"),
        (2, 0, "no class can be dropped from 2; a network needs 2"),
    ],
)
def test_a_class_that_cannot_be_dropped_is_named(num_classes, index, message):
    card = Card("seg", "fc_densenet", {"num_classes": num_classes, "num_pools": 1, "num_layers": 1})
    tensors = create_model("fc_densenet", **card.arguments).state_dict()
    with pytest.raises(ConfigError) as error:
        without_class(tensors, card, index)
    assert str(error.value) == message


def test_classes_are_dropped_from_fc_densenets_alone():
    card = Card("encoder", "densenet121", {})
    with pytest.raises(ConfigError) as error:
        without_class({"classifier.weight": torch.rand(10, 4)}, card, 0)
    assert str(error.value) == "a class can be dropped from an FC-DenseNet, and densenet121 is none"


def test_a_file_that_is_not_all_of_a_network_fails_with_its_reason(tmp_path):
    state = random_tiramisu(*SMALL).state_dict()
    del state["denseBlocksUp.1.layers.0.norm.bias"]
    path = save(tmp_path / "weights.pth", state)
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value) == f"{path}: lacks up_blocks.1.denselayer1.norm1.bias (1 in all) for fc_densenet"


# The authors' Lasagne code, in numpy: correlations, norms by mean and inv_std, and Deconv2DLayer by its definition.


def correlate(x: np.ndarray, kernel: np.ndarray, pad: int, *, bias: np.ndarray) -> np.ndarray:
    """Returns what slides kernels (out, in, h, w) over (in, H, W) as they are."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (1, 2))
    return np.einsum("chwij,ocij->ohw", windows, kernel) + bias[:, None, None]


def deconvolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Lasagne's TransposedConv2DLayer, stride 2, crop "valid", flip_filters=False.

    Pixels are spread out with zeros between and around them, and filters (in, out, 3, 3) slide over that as they are.
    """
    spread = np.zeros((x.shape[0], 2 * x.shape[1] - 1, 2 * x.shape[2] - 1))
    spread[:, ::2, ::2] = x
    return correlate(spread, weight.transpose(1, 0, 2, 3), 2, bias=bias)


class Lasagne:
    """The authors' network in test mode with averages, its parameters in the order that Lasagne saves them."""

    def __init__(self, growth: int, counts: tuple[int, ...], num_classes: int, init: int) -> None:
        self.rng, self.values, self.counts = np.random.default_rng(0), [], counts
        pools = len(counts) // 2
        self.first = self.conv(init, 3, 3)
        channels, skips = init, []
        self.down, self.transitions = [], []
        for layers in counts[:pools]:
            self.down.append([self.layer(channels + i * growth, growth, 3) for i in range(layers)])
            channels += growth * layers
            skips.append(channels)
            self.transitions.append(self.layer(channels, channels, 1))
        self.bottleneck = [self.layer(channels + i * growth, growth, 3) for i in range(counts[pools])]
        self.ups, new = [], growth * counts[pools]
        for layers in counts[pools + 1 :]:
            deconv = self.conv(new, new, 3)
            channels = new + skips.pop()
            self.ups.append((deconv, [self.layer(channels + i * growth, growth, 3) for i in range(layers)]))
            new = growth * layers
        self.last = self.conv(num_classes, channels + new, 1)

    def add(self, *arrays: np.ndarray) -> list[np.ndarray]:
        added = [array.astype(np.float32) for array in arrays]
        self.values += added
        return added

    def conv(self, out: int, channels: int, size: int) -> list[np.ndarray]:
        weight = self.rng.standard_normal((out, channels, size, size)) * (2 / (channels * size**2)) ** 0.5
        return self.add(weight, self.rng.standard_normal(out) / 10)

    def layer(self, channels: int, out: int, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        beta, mean = self.rng.standard_normal((2, channels)) / 4
        gamma, inv_std = self.rng.uniform(0.5, 1.5, (2, channels))
        return self.add(beta, gamma, mean, inv_std), self.conv(out, channels, size)

    @staticmethod
    def run(layer, x: np.ndarray) -> np.ndarray:
        (beta, gamma, mean, inv_std), (weight, bias) = layer
        beta, gamma, mean, inv_std = (v[:, None, None].astype(float) for v in (beta, gamma, mean, inv_std))
        x = np.maximum((x - mean) * (gamma * inv_std) + beta, 0)
        return correlate(x, weight, weight.shape[-1] // 2, bias=bias)

    def logits(self, x: np.ndarray) -> np.ndarray:
        stack, skips = correlate(x, self.first[0], 1, bias=self.first[1]), []
        for block, transition in zip(self.down, self.transitions, strict=True):
            for layer in block:
                stack = np.concatenate([stack, self.run(layer, stack)])
            skips.append(stack)
            y = self.run(transition, stack)
            y = y[:, : y.shape[1] // 2 * 2, : y.shape[2] // 2 * 2]
            stack = y.reshape(len(y), y.shape[1] // 2, 2, y.shape[2] // 2, 2).max((2, 4))
        new = []
        for layer in self.bottleneck:
            new.append(self.run(layer, stack))
            stack = np.concatenate([stack, new[-1]])
        for (weight, bias), block in self.ups:
            skip = skips.pop()
            up = deconvolve(np.concatenate(new), weight, bias)[:, : skip.shape[1], : skip.shape[2]]
            stack, new = np.concatenate([up, skip]), []
            for layer in block:
                new.append(self.run(layer, stack))
                stack = np.concatenate([stack, new[-1]])
        return correlate(stack, self.last[0], 0, bias=self.last[1])


@pytest.fixture
def lasagne(tmp_path) -> tuple[Lasagne, Path]:
    theirs = Lasagne(*SMALL)
    np.savez(tmp_path / "weights.npz", *theirs.values)
    return theirs, tmp_path / "weights.npz"


def test_the_authors_weights_give_the_logits_of_their_network(lasagne):
    theirs, path = lasagne
    net, card, report = open_foreign(path)
    assert (report.dialect, card.arguments["num_layers"]) == ("simjeg", list(SMALL[1]))
    x = np.random.default_rng(1).random((3, 13, 18))
    with torch.inference_mode():
        y = net.eval()(torch.from_numpy(x[None]).float())[0].numpy()
    expected = theirs.logits(x)
    assert expected.std() > 0.1
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_deconvolution_by_its_definition_is_torchs_with_kernels_turned_round():
    rng = np.random.default_rng(2)
    x, weight, bias = rng.random((4, 5, 6)), rng.standard_normal((4, 3, 3, 3)), rng.random(3)
    turned = torch.from_numpy(weight).flip(2, 3)
    y = F.conv_transpose2d(torch.from_numpy(x)[None], turned, torch.from_numpy(bias), stride=2)
    np.testing.assert_allclose(deconvolve(x, weight, bias), y[0].numpy(), atol=1e-12)


@pytest.mark.parametrize("layers", NETS)
def test_the_authors_three_nets_load_strictly(tmp_path, layers):
    growth, counts, _ = NETS[layers]
    np.savez(tmp_path / "weights.npz", *Lasagne(growth, counts, 11, 48).values)
    net, card, report = open_foreign(tmp_path / "weights.npz")
    assert card.arguments["num_layers"] == list(counts)
    assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in net.modules()) == layers
    assert len(report.renamed) == len(np.load(tmp_path / "weights.npz").files)


def test_the_authors_statistics_are_not_to_be_predicted_with(lasagne):
    from densekit.predict import load

    _, path = lasagne
    model = load(path, device="cpu")
    assert model.card.bn_mode == "batch"
    with pytest.raises(ConfigError, match="densekit bn recalibrate"):
        model.predict(torch.rand(3, 16, 16))


def test_a_cut_npz_fails_with_its_reason(tmp_path, lasagne):
    theirs, path = lasagne
    np.savez(path, *theirs.values[:-1])
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    assert str(error.value).startswith(f"{path}: begins like weights of simjeg, but is not all of a network: ")


def test_recalibrated_from_the_command_line_the_authors_weights_predict(tmp_path, lasagne, monkeypatch, capfd):
    _, path = lasagne
    monkeypatch.setenv("DENSEKIT_MALLOC", "0")  # which suits one command, not the test process
    pictures, made = tmp_path / "pictures", tmp_path / "new.safetensors"
    pictures.mkdir()
    rng = np.random.default_rng(3)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(pictures / f"{i}.png")
    words = ["bn", "recalibrate", path, "--data", pictures, "-o", made, "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    assert "bn recalibrate FILE.npz" in capfd.readouterr().err  # the report says what to do with such a file
    assert read_card(made).bn_mode == "recalibrated"
    assert main(["seg", "predict", str(pictures / "0.png"), "-m", str(made), "-o", str(tmp_path / "out.png")]) == 0
    with Image.open(tmp_path / "out.png") as mask:
        assert mask.size == (24, 20)

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densekit.checkpoint import load_model
from densekit.config import Config
from densekit.errors import CheckpointError, ConfigError, DataError
from densekit.losses import Perceptual, generator_loss
from densekit.tasks import create_task
from densekit.train import rehearse, train
from densekit.train.state import load_state, save_state
from tests.fault.test_f01_kill import KILLS, STEPS_AT_MOST, killed_and_undisturbed
from tests.training_data import sr_config, write_pictures

COSTS = ("steps_per_s", "seconds", "memory")  # what the clock and the machine say
GAN = {"num_features": 4, "loss": "ragan", "weight": 0.05, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("gan") / "pictures")


@pytest.fixture
def config_of(pictures):
    def make(gan: dict | None = None, *, data: dict | None = None, **train) -> Config:
        settings = sr_config(pictures, data=data, **{"crop_size": 16, "total_steps": 6, "samples": 0, **train})
        return Config.model_validate({**settings.model_dump(), "gan": {**GAN, **(gan or {})}})

    return make


def run(config: Config, folder: Path, **options):
    return train(create_task(config), config, folder, **options)


def records(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in COSTS} for line in lines]


def results(folder: Path):
    """All that a run leaves behind and that must not depend on its interruptions."""
    files = [*folder.glob("*.safetensors"), max(folder.glob("checkpoints/*"))]
    return {path.name: path.read_bytes() for path in files}, records(folder)


def last_state(folder: Path) -> dict:
    return load_state(max(folder.glob("checkpoints/*")))


class Dying:
    """A task whose process runs out of memory in one forward pass, after the discriminator has judged it."""

    def __init__(self, task, at):
        self.task, self.left = task, at

    def __getattr__(self, name):
        return getattr(self.task, name)

    def loss(self, net, batch):
        loss = self.task.loss(net, batch)
        self.left -= 1
        if self.left == -1:
            raise MemoryError("the power fails")
        return loss


@pytest.mark.parametrize("discriminator", ["unet", "vgg"])
def test_both_learn_and_the_log_says_so(tmp_path, config_of, discriminator):
    config = config_of({"discriminator": discriminator})
    figures = run(config, tmp_path)
    steps = [line for line in records(tmp_path) if "loss" in line]
    assert len(steps) == 6
    for line in steps:
        assert float.fromhex(line["d_loss_hex"]) == line["d_loss"] > 0
        assert line["gan_loss"] > 0
        assert line["loss"] > GAN["weight"] * line["gan_loss"]
    assert figures["psnr"] > 20
    state = last_state(tmp_path)
    fresh = create_task(config).adversary
    fresh.begin("cpu")
    assert state["adversary"]["steps"] == 6
    assert state["adversary"]["net"].keys() == fresh.net.state_dict().keys()
    learned = state["adversary"]["net"]
    still = {name for name, value in fresh.net.named_parameters() if torch.equal(learned[name], value)}
    assert still <= {"last.bias"}, "which a relativistic loss does not see: it judges by differences"
    net, card = load_model(tmp_path / "last.safetensors")  # the network alone
    assert card.model == "rdn"
    assert net.state_dict().keys() == state["net"].keys()


@pytest.mark.parametrize("perceptual", [False, True])
def test_the_loss_is_the_sum_of_what_the_config_names(config_of, perceptual, capsys):
    layers = {"conv1_2": 0.5, "relu2_1": 2.0}
    options = {"loss": "0.01*l1+perceptual", "perceptual_layers": layers} if perceptual else {}
    task = create_task(config_of({"weight": 5}, **options))
    warned = "warning: train.perceptual_weights is null: the perceptual loss compares features of a VGG19 with random"
    assert (warned in capsys.readouterr().err) == perceptual
    net, adversary = task.build_model(), task.adversary
    adversary.begin("cpu")
    batch = next(task.train_batches(0))
    lr, hr = (tensor.float() / 255 for tensor in batch)
    sr = net(lr)
    l1 = (sr - hr).abs().mean()
    plain = 0.01 * l1 + Perceptual(None, layers)(sr, hr) if perceptual else l1
    adversarial = generator_loss(adversary.net(hr), adversary.net(sr))
    wanted = torch.autograd.grad(plain + 5 * adversarial, net.parameters(), retain_graph=True)
    without = torch.autograd.grad(plain, net.parameters())
    loss = task.loss(net, batch)
    torch.testing.assert_close(loss, plain + 5 * adversarial)
    found = torch.autograd.grad(loss, net.parameters())
    torch.testing.assert_close(found, wanted)
    assert any((one - other).abs().max() > 1e-3 * one.abs().max() for one, other in zip(found, without, strict=True))


def test_a_perceptual_loss_that_cannot_be_is_refused_with_its_key(config_of):
    with pytest.raises(ConfigError) as caught:
        create_task(config_of(loss="l1+perceptual", perceptual_layers={"conv5_5": 1.0}))
    assert str(caught.value) == (
        "train.loss=l1+perceptual: VGG19 has no layer 'conv5_5'; did you mean 'conv5_4'? (such as conv5_4 or relu3_3)"
    )
    with pytest.raises(CheckpointError, match=r"missing\.pth: cannot be read as weights of VGG19"):
        create_task(config_of(loss="perceptual", perceptual_weights="missing.pth"))
    config = config_of({"discriminator": "unet"}, loss="perceptual", crop_size=8)
    smaller = Config.model_validate({**config.model_dump(), "model": {"name": "rrdbnet", "scale": 1, "num_blocks": 1}})
    with pytest.raises(ConfigError) as caught:
        create_task(smaller)
    assert str(caught.value) == (
        "train.crop_size=8: gives pictures of 8 pixels at scale 1, but the loss perceptual needs 16; raise it to 16 or "
        "more"
    )


@pytest.mark.parametrize(
    ("gan", "options", "at"),
    [
        ({"discriminator": "unet"}, {}, 5),
        ({"discriminator": "vgg", "loss": "vanilla", "start_step": 3}, {"accumulate": 2, "precision": "bf16"}, 9),
    ],
)
def test_a_run_that_dies_continues_to_the_same_bytes(tmp_path, config_of, gan, options, at):
    config = config_of(gan, **options)
    run(config, tmp_path / "whole")
    with pytest.raises(MemoryError):
        train(Dying(create_task(config), at), config, tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loader_processes_change_nothing(tmp_path, config_of):
    run(config_of(), tmp_path / "whole")
    config = config_of(data={"num_workers": 2})
    with pytest.raises(MemoryError):
        train(Dying(create_task(config), 5), config, tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    for folder in ("whole", "parts"):
        state = last_state(tmp_path / folder)
        parts = {key: state[key] for key in ("net", "average", "optimizer", "adversary")}
        save_state(tmp_path / f"{folder}.dk", {"step": 6, "best": 0, "config": "", **parts})
    assert (tmp_path / "whole.dk").read_bytes() == (tmp_path / "parts.dk").read_bytes()
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


def test_a_state_without_a_discriminator_is_no_start_for_a_config_with_one(tmp_path, config_of):
    config = config_of(total_steps=4)
    run(config, tmp_path)
    path = max(tmp_path.glob("checkpoints/*"))
    state = load_state(path)
    del state["adversary"]
    save_state(path, state)
    with pytest.raises(CheckpointError) as caught:
        run(config, tmp_path, resume=True)
    assert str(caught.value) == (
        "the state of step 4 holds no discriminator, but the config has a section gan; start another --run, with the "
        "weights of this one as train.initial_weights"
    )


def test_a_state_without_a_discriminator_goes_on_where_none_is_wanted(tmp_path, pictures):
    config = sr_config(pictures, total_steps=4, samples=0)
    run(config, tmp_path)
    path = max(tmp_path.glob("checkpoints/*"))
    old = {key: value for key, value in load_state(path).items() if key not in ("adversary", "doubts")}
    save_state(path, old)
    assert run(config, tmp_path, resume=True)["psnr"] > 0


def test_a_run_does_not_change_its_opponent(tmp_path, config_of, pictures):
    run(config_of(total_steps=4), tmp_path)
    with pytest.raises(ConfigError, match=r"began with another config: gan.loss \(ragan -> hinge\); take these back"):
        run(config_of({"loss": "hinge"}, total_steps=4), tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"gan.discriminator \(unet -> None\)"):
        run(sr_config(pictures, crop_size=16, total_steps=4, samples=0), tmp_path, resume=True)


def test_a_discriminator_of_another_shape_is_refused(tmp_path, config_of):
    config = config_of(total_steps=4)
    run(config, tmp_path)
    path = max(tmp_path.glob("checkpoints/*"))
    state = load_state(path)
    state["adversary"]["net"].pop("last.weight")
    save_state(path, state)
    with pytest.raises(CheckpointError, match=r"the state of step 4 does not fit this densekit: .*UNetDiscriminator"):
        run(config, tmp_path, resume=True)


def poisoned(config: Config, passes: set[int]):
    """A task whose discriminator is shown real pictures that are no numbers in some forward passes."""
    task = create_task(config)
    judge, count = task.adversary.judge, iter(range(1000))
    task.adversary.judge = lambda sr, hr: judge(sr, hr * math.nan if next(count) in passes else hr)
    return task


def test_a_step_of_the_discriminator_without_a_finite_gradient_is_skipped(tmp_path, config_of, capsys):
    """What it makes of real pictures has no part in the vanilla loss of the network, which goes on."""
    config = config_of({"loss": "vanilla"})
    train(poisoned(config, {2, 3}), config, tmp_path)
    skipped = {line["step"]: line["skipped"] for line in records(tmp_path) if "skipped" in line}
    assert skipped == dict.fromkeys((3, 4), "the discriminator's loss is nan")
    assert "step 3: the discriminator's loss is nan; skipped (2 in a row, 10 allowed)" in capsys.readouterr().err
    state = last_state(tmp_path)
    assert state["optimizer"]["state"][0]["step"] == 6
    assert state["adversary"]["optimizer"]["state"][0]["step"] == 4
    assert ["d_loss" in line for line in records(tmp_path) if "loss" in line] == [True] * 2 + [False] * 2 + [True] * 2


def test_a_discriminator_that_runs_away_ends_the_run(tmp_path, config_of):
    config = config_of({"loss": "vanilla"}, max_skipped=1, checkpoint_every=1)
    message = (
        r"^step 5, draws 10 to 11: the discriminator's loss is nan; of .*; start another --run with a lower "
        r"gan\.learning_rate$"
    )
    with pytest.raises(DataError, match=message):
        train(poisoned(config, {4, 5}), config, tmp_path / "run")
    assert last_state(tmp_path / "run")["doubts"] == 1
    with pytest.raises(DataError, match="step 5, draws 10 to 11: the discriminator's loss"):  # counted across a resume
        train(poisoned(config, {0}), config, tmp_path / "run", resume=True)


def test_a_network_trained_for_psnr_is_where_it_starts(tmp_path, config_of, pictures):
    run(sr_config(pictures, crop_size=16, total_steps=20, eval_every=20, samples=0), tmp_path / "psnr")
    weights = tmp_path / "psnr" / "last.safetensors"
    config = config_of({"start_step": 1}, initial_weights=str(weights), total_steps=2)
    task, own = create_task(config), load_model(weights)[0].state_dict()
    assert all(torch.equal(value, own[name]) for name, value in task.build_model().state_dict().items())
    train(task, config, tmp_path / "gan")
    assert records(tmp_path / "gan")[0]["loss"] < records(tmp_path / "psnr")[0]["loss"]


def test_a_rehearsal_counts_the_discriminator(config_of):
    config = config_of({"num_features": 16})
    lines = list(rehearse(create_task(config), config))
    assert lines[1] == "discriminator unet: 274,001 parameters"
    assert lines[3].startswith("2 steps: loss ")


@pytest.mark.gpu
def test_it_trains_on_a_gpu(tmp_path, config_of):
    config = config_of(
        {"discriminator": "vgg"}, precision="fp16", loss="l1+perceptual", perceptual_layers={"conv2_1": 1}
    )
    run(config, tmp_path, device="cuda")
    assert all(math.isfinite(line["d_loss"]) for line in records(tmp_path) if "d_loss" in line)


@pytest.mark.slow
@pytest.mark.parametrize("gan", [{"discriminator": "unet"}, {"discriminator": "vgg", "loss": "vanilla"}])
def test_two_ranks_equal_one_process_that_accumulates_two_passes(tmp_path, config_of, gan):
    densekit = str(Path(sys.executable).with_name("densekit"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", "--"]
    for name, options in {"one": {"batch_size": 2, "accumulate": 2}, "two": {"batch_size": 4}}.items():
        (tmp_path / f"{name}.yaml").write_text(config_of(gan, total_steps=12, **options).to_yaml())
        command = [densekit, "sr", "train", str(tmp_path / f"{name}.yaml"), "--run", str(tmp_path / name)]
        result = subprocess.run(
            [*(launch if name == "two" else []), *command, "--device", "cpu"],
            capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        state = last_state(tmp_path / name)
        parts = {key: state[key] for key in ("net", "average", "optimizer", "adversary")}
        save_state(tmp_path / f"{name}.dk", {"step": 12, "best": 0, "config": "", **parts})
    assert (tmp_path / "one.dk").read_bytes() == (tmp_path / "two.dk").read_bytes()
    assert records(tmp_path / "one") == records(tmp_path / "two")


@pytest.mark.fault
@pytest.mark.timeout(60 + 20 * KILLS)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_run_ends_with_the_bytes_of_one_never_killed(tmp_path, config_of):
    config = config_of(
        {"num_features": 16},
        total_steps=(STEPS_AT_MOST + 1) * KILLS + 5,
        checkpoint_every=1,
        eval_every=7,
        accumulate=1,
    )
    killed, undisturbed = killed_and_undisturbed(tmp_path, config, [0, 2])
    assert killed == undisturbed
    assert sorted(killed[1]) == list(range(1, config.train.total_steps + 1))
    hexes = re.findall(r'"d_loss_hex": "([^"]+)"', (tmp_path / "undisturbed" / "metrics.jsonl").read_text())
    assert re.findall(r'"d_loss_hex": "([^"]+)"', (tmp_path / "killed" / "metrics.jsonl").read_text()) == hexes
    assert len(hexes) == config.train.total_steps

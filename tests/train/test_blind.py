"""Trainings on pictures that are degraded on the device, as each step draws it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from densekit.cards import read_card
from densekit.datasets.degradation import degrade, seed_of
from densekit.datasets.pairs import to_chw
from densekit.image import read_image
from densekit.tasks import create_task
from densekit.train import rehearse, train
from densekit.train.loop import add_gradients
from tests.train.test_loop import Disturbed, crash, records, results
from tests.training_data import sr_config, write_pictures

BLIND = {"degradation": "real-esrgan"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("sr") / "pictures")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    config = sr_config(pictures, data=BLIND)
    train(create_task(config), config, folder)
    return results(folder)


@pytest.mark.parametrize("step", [2, 11])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, pictures, undisturbed, step):
    config = sr_config(pictures, data=BLIND)
    with pytest.raises(MemoryError):
        train(Disturbed(create_task(config), step, crash), config, tmp_path)
    train(create_task(config), config, tmp_path, resume=True)
    assert results(tmp_path) == undisturbed


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loader_processes_change_nothing(tmp_path, pictures, undisturbed):
    config = sr_config(pictures, data={**BLIND, "num_workers": 2})
    train(create_task(config), config, tmp_path)
    files, log = results(tmp_path)
    assert log == undisturbed[1]
    assert all(files[name] == undisturbed[0][name] for name in ("best.safetensors", "last.safetensors"))


@pytest.mark.parametrize("sharpen", [False, True])
def test_the_loss_falls_and_the_network_undoes_some_of_it(tmp_path, sharpen):
    pictures = write_pictures(tmp_path / "pictures", count=4, height=64, width=64)
    config = sr_config(
        pictures,
        data={**BLIND, "sharpen": sharpen},
        total_steps=40,
        batch_size=3,
        crop_size=16,
        eval_every=20,
        ema_decay=0.9,
    )
    figures = train(create_task(config), config, tmp_path / "run")
    lines = records(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-20:]) < 0.85 * np.mean(losses[:5])
    psnrs = [line["psnr"] for line in lines if "psnr" in line]
    assert psnrs[-1] == figures["psnr"] == max(psnrs)
    scored = read_card(tmp_path / "run" / "last.safetensors").metrics["data"]
    assert scored == f"{pictures} degraded by real-esrgan"


def test_passes_of_one_step_and_steps_are_degraded_unlike(pictures):
    """The same crops, seen in four passes: in each the low resolution is another, and the same once more."""
    config = sr_config(pictures, data=BLIND, accumulate=2)
    task = create_task(config)
    batch = next(task.train_batches(0))
    assert torch.equal(batch[0], batch[1])
    net = task.build_model()
    seen = []

    def watch(lr):
        seen.append(lr.clone())
        return net(lr)

    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in (0, 1, 0):
        add_gradients(task, watch, iter([batch, batch]), scaler, config, "cpu", step)
    assert [lr.shape for lr in seen] == [(2, 3, 12, 12)] * 6
    assert torch.equal(torch.stack(seen[:2]), torch.stack(seen[4:]))
    assert len({lr.numpy().tobytes() for lr in seen}) == 4


def test_a_sharpened_target_is_what_low_resolution_is_made_from(pictures):
    config = sr_config(pictures, data={**BLIND, "sharpen": True})
    task = create_task(config)
    targets = []
    task.criterion = lambda sr, hr: targets.append(hr) or (sr - hr).abs().mean()
    batch = next(task.train_batches(0))
    task.loss(task.build_model(), batch)
    real = batch[1].float() / 255
    assert targets[0].std() > 1.02 * real.std()
    torch.manual_seed(1)
    lr, target = task._degrade(real)
    torch.manual_seed(1)
    plain = create_task(sr_config(pictures, data=BLIND))
    assert torch.equal(plain._degrade(target)[0], lr)
    assert not torch.equal(plain._degrade(real)[0], lr)


def test_a_validation_picture_is_degraded_by_its_name_alone(tmp_path, pictures):
    one = create_task(sr_config(pictures, data=BLIND))
    for name, (lr, hr) in zip(("0.png", "1.png", "2.png"), one.val, strict=True):
        x = to_chw(read_image(pictures / name).pixels)[None].float() / 255
        expected = (degrade(x, 2, [seed_of(name)])[0] * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(lr, expected)
        assert hr.shape == (40, 48, 3)
    (tmp_path / "less").mkdir()
    shutil.copy(pictures / "1.png", tmp_path / "less")
    cache = str(tmp_path / "cache")
    config = sr_config(pictures, data={**BLIND, "val": [str(tmp_path / "less")], "cache": cache}, seed=9)
    for _ in range(2):  # packed, then mapped
        np.testing.assert_array_equal(create_task(config).val[0][0], one.val[1][0])


def test_validation_pictures_may_bring_their_own_low_resolution(tmp_path, pictures):
    lows = write_pictures(tmp_path / "lr", height=20, width=24, seed=50)
    task = create_task(sr_config(pictures, data={**BLIND, "val_lr": [str(lows)]}))
    np.testing.assert_array_equal(task.val[2][0], read_image(lows / "2.png").pixels)


def test_a_picture_too_small_to_score_is_named(tmp_path, pictures):
    small = write_pictures(tmp_path / "small", count=1, height=1, width=40)
    with pytest.raises(ValueError, match=r"small/0\.png: cannot be scored: smaller than 2x2 pixels"):
        create_task(sr_config(pictures, data={**BLIND, "val": [str(small)]}))


def test_a_blind_run_can_be_rehearsed(pictures):
    config = sr_config(pictures, data={**BLIND, "sharpen": True}, precision="bf16")
    lines = list(rehearse(create_task(config), config))
    assert any(line.startswith("2 steps: loss ") for line in lines)

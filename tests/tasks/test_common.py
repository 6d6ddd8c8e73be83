from __future__ import annotations

import multiprocessing
import os
import signal
from itertools import islice

import pytest
import torch

from densekit.config import Config
from densekit.errors import ConfigError, DeviceError
from densekit.models import create_model
from densekit.tasks import create_task
from densekit.tasks.common import batches, fingerprint, new_model
from densekit.tasks.seg import Segmentation
from densekit.tasks.sr import SuperResolution
from densekit.train import train
from tests.training_data import seg_config, sr_config, write_masked, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("sr") / "pictures")


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return write_masked(tmp_path_factory.mktemp("seg") / "masked")


def with_model(config: Config, **model) -> Config:
    """The same config with another network."""
    return Config.model_validate({**config.model_dump(), "model": model})


def test_a_config_makes_the_task_it_names(pictures, masked):
    assert isinstance(create_task(sr_config(pictures)), SuperResolution)
    assert isinstance(create_task(seg_config(masked)), Segmentation)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "rdm", "scale": 2}, "model 'rdm': no such architecture; did you mean 'rdn'?"),
        ({"name": "rdn", "scale": 2, "num_fetures": 4}, "model.num_fetures: rdn takes no such argument; did you mean"),
        ({"name": "rdn", "scale": 5}, "scale=5: expected 1, 2, 3, 4 or 8"),
        (
            {"name": "rdn", "scale": 2, "num_features": "many"},
            "model rdn: cannot be built, or cannot take RGB crops of 12x12",
        ),
        ({"name": "srdensenet", "scale": 2}, "model srdensenet: cannot be built, or cannot take RGB crops of 12x12"),
        (
            {"name": "rdn", "scale": 2, "out_channels": 1},
            "model rdn: makes (1, 1, 24, 24) of a crop (1, 3, 12, 12), but task sr needs",
        ),
        ({"name": "densenet_cifar", "scale": 2}, "model.scale: densenet_cifar takes no such argument"),
    ],
)
def test_a_network_that_does_not_fit_super_resolution_is_refused_before_any_picture_is_read(tmp_path, model, message):
    with pytest.raises(ConfigError) as error:
        create_task(with_model(sr_config(tmp_path / "absent"), **model))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "fc_densenet", "num_classes": 3, "num_pools": 6}, "cannot take RGB crops of 32x32 (train.crop_size)"),
        ({"name": "rdn", "num_classes": 3}, "model.num_classes: rdn takes no such argument"),
        (
            {"name": "densenet_cifar", "num_classes": 3},
            "makes (1, 3) of a crop (1, 3, 32, 32), but task seg needs (1, 3, 32, 32)",
        ),
    ],
)
def test_a_network_that_does_not_fit_segmentation_is_refused_before_any_picture_is_read(tmp_path, model, message):
    with pytest.raises(ConfigError) as error:
        create_task(with_model(seg_config(tmp_path / "absent"), **model))
    assert message in str(error.value)


def test_batches_from_the_middle_are_those_of_the_whole(pictures):
    task = create_task(sr_config(pictures))
    whole = list(islice(task.train_batches(0), 6))
    for (lr, hr), (expected_lr, expected_hr) in zip(islice(task.train_batches(3), 3), whole[3:], strict=True):
        assert torch.equal(lr, expected_lr)
        assert torch.equal(hr, expected_hr)
    assert whole[0][0].shape == (2, 3, 12, 12)
    assert whole[0][1].shape == (2, 3, 24, 24)


def test_a_loader_leaves_the_random_state_that_dropout_uses(pictures):
    task = create_task(sr_config(pictures))
    before = torch.get_rng_state()
    next(task.train_batches(0))
    assert torch.equal(before, torch.get_rng_state())


class Signalled:
    """Data that says which signals its process ignores."""

    def __len__(self):
        return 4

    def __getitem__(self, item):
        return torch.tensor([signal.getsignal(s) == signal.SIG_IGN for s in (signal.SIGINT, signal.SIGTERM)])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_leave_signals_to_the_main_process(pictures):
    task = create_task(sr_config(pictures, data={"num_workers": 1}))
    task.data = Signalled()
    assert next(task.train_batches(0)).all()
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def test_a_fingerprint_counts_names_and_not_their_order(tmp_path):
    a, b, c = (tmp_path / name for name in ("a", "b", "c"))
    assert fingerprint([a, b]) == fingerprint([b, a])
    assert fingerprint([a, b]).startswith("2 files ")
    assert len({fingerprint(paths) for paths in ([a, b], [a, c], [a], [a, b, c], [])}) == 5


def kill_a_worker():
    """Kills one of the loader's processes."""
    os.kill(min(child.pid for child in multiprocessing.active_children()), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_worker_costs_no_batch_and_repeats_none(tmp_path, capsys):
    config = sr_config(write_pictures(tmp_path / "pictures"), data={"num_workers": 2})
    data = create_task(config).data
    expected = list(islice(batches(data, config, 3), 12))
    found, source = [], batches(data, config, 3)
    for index in range(12):
        found.append(next(source))
        if index in (2, 7):
            kill_a_worker()
    source.close()
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert "warning: a loader process died; starting new ones (1 of 3 times)" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_that_die_again_and_again_end_the_run(tmp_path):
    config = sr_config(write_pictures(tmp_path / "pictures"), data={"num_workers": 1})
    source = batches(create_task(config).data, config, 0)

    def drain():
        for _ in source:
            kill_a_worker()

    with pytest.raises(DeviceError, match=r"loader processes died 4 times.*lower data.num_workers \(now 1\)"):
        drain()


def test_other_errors_of_the_data_are_not_retried(tmp_path):
    config = sr_config(write_pictures(tmp_path / "pictures"))
    data = create_task(config).data

    class Broken(type(data)):
        def __getitem__(self, item):
            raise RuntimeError("broken")

    data.__class__ = Broken
    with pytest.raises(RuntimeError, match="broken"):
        next(batches(data, config, 0))


def test_a_checkpoint_names_the_data_and_licence_of_the_weights_that_it_starts_from(tmp_path, pictures):
    first = sr_config(pictures, data={"licence": "research only"}, total_steps=1)
    train(create_task(first), first, tmp_path / "first")
    initial = str(tmp_path / "first" / "last.safetensors")
    other = write_pictures(tmp_path / "other")
    second = sr_config(other, data={"licence": "CC0"}, total_steps=1, initial_weights=initial)
    card = create_task(second).card(1, {})
    assert card.licence == "research only; CC0"
    assert card.data == f"{pictures}; {other}"


def test_weights_of_a_densenet_in_the_words_of_others_start_the_encoder_of_a_segmentation_network(tmp_path, masked):
    arguments = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}
    torch.manual_seed(1)
    source = create_model("densenet", num_classes=5, **arguments)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "d.pth")
    small = {"name": "unet", "num_classes": 3, "decoder_channels": [4, 4, 4, 4, 4], **arguments}
    config = with_model(seg_config(masked, initial_weights=str(tmp_path / "d.pth")), **small)
    own = new_model(config).state_dict()
    assert all(torch.equal(own[f"encoder.{k}"], v) for k, v in source.state_dict().items() if f"encoder.{k}" in own)
    assert "encoder.features.denseblock4.denselayer1.conv2.weight" in own

"""Every shipped config, on generated pictures: it rehearses, and its loss falls.

What is kept of a config is what a fault would be in: network, losses, optimizer, schedule, augmentation, degradation
and discriminator. What is not: data, crops of 8, 12 or 64 pixels, batches of 2, 20 steps, no weights to start from,
and no trained VGG19, since it would be downloaded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from densekit.cli import main
from densekit.config import list_configs, load_config
from densekit.models import create_model
from tests.training_data import write_masked, write_pictures

ROOT = Path(__file__).parents[2]
STEPS = 20
QUICK = {"sr/rdn_light_x2", "sr/rdn_light_x4", "sr/rdn_tiny_x4", "seg/fc_densenet_nuclei"}
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name.split("/")[1])
    for name in list_configs()
]

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DENSEKIT_MALLOC", "0")


def tiny_data(name: str) -> list[str]:
    """Writes two pictures of the size of a crop, and one to validate on; returns the overrides that name them."""
    config = load_config(name)
    if config.task == "sr":
        scale = config.model.kwargs["scale"]
        crop = 8 if scale == 4 and config.gan is None else 12
        write_pictures(Path("train"), 2, crop * scale, crop * scale)
        write_pictures(Path("val"), 1, 48, 56, seed=7)
        given = [f"train.crop_size={crop}", "data.train=train", "data.val=val"]
        return [*given, "data.lr=[]", "data.val_lr=[]", "data.shrink=[1]"]
    classes = max(config.model.kwargs["num_classes"], 2)
    write_masked(Path("train"), 2, 64, 64, classes=classes)
    write_masked(Path("val"), 1, 360, 480, seed=7, classes=classes)
    return ["train.crop_size=64", "data.train=train", "data.val=val"]


def smaller(name: str) -> list[str]:
    """Returns overrides by which a config trains in seconds on the data of `tiny_data`."""
    config = load_config(name)
    overrides = [
        *tiny_data(name),
        *("train.batch_size=2", "train.threads=1", "train.initial_weights=null", "data.num_workers=0"),
        *("data.cache=null", f"train.total_steps={STEPS}", "train.log_every=1", "train.samples=0"),
        f"optim.warmup_steps={min(2, config.optim.warmup_steps)}",
    ]
    if config.train.perceptual_weights:
        overrides.append("train.perceptual_weights=null")
    if config.train.freeze_norm_step:
        overrides.append(f"train.freeze_norm_step={STEPS - 2}")
    return overrides


def parameters_of(name: str) -> dict[str, torch.Tensor]:
    """Returns the parameters of a shipped config's network, without their memory."""
    model = load_config(name).model
    with torch.device("meta"):
        return dict(create_model(model.name, **model.kwargs).named_parameters())


@pytest.mark.parametrize("name", list_configs())
def test_the_number_of_parameters_in_a_header_is_that_of_the_network(name):
    header = (ROOT / "configs" / f"{name}.yaml").read_text().partition("task:")[0]
    for number in re.findall(r"([\d,]+) parameters", header.replace("\n# ", " ")):
        assert int(number.replace(",", "")) == sum(p.numel() for p in parameters_of(name).values())


@pytest.mark.parametrize("name", [name for name in list_configs() if load_config(name).train.initial_weights])
def test_the_weights_to_start_from_are_those_of_another_shipped_config_and_fit(name):
    _, run, file = Path(load_config(name).train.initial_weights).parts
    other = f"{name.split('/')[0]}/{run}"
    assert file in ("best.safetensors", "last.safetensors")
    assert other in list_configs()
    own, given = parameters_of(name), parameters_of(other)
    fitting = [key for key in own if key in given and own[key].shape == given[key].shape]
    assert sum(own[key].numel() for key in fitting) > 0.9 * sum(p.numel() for p in own.values())


@pytest.mark.parametrize("name", list_configs())
def test_data_lie_where_their_programs_put_them(name):
    data = load_config(name).data
    for path in map(Path, (*data.train, *data.lr, *data.val, *data.val_lr, *data.masks, *data.val_masks)):
        assert (ROOT / "data" / path.parts[1] / "prepare.py").is_file()
        layout = (ROOT / "data" / path.parts[1] / "README.md").read_text()
        assert all(part in layout for part in path.parts[2:]), f"{path} is not in the layout"


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_passes_its_dry_run(name, capfd):
    code = main([name.split("/")[0], "train", name, "--dry-run", "--device", "cpu", *smaller(name)])
    lines = capfd.readouterr().err.splitlines()
    assert code == 0, lines
    assert any(line.startswith("2 steps: loss ") for line in lines)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_trains_with_a_falling_loss(name, capfd):
    overrides = [*smaller(name), "data.val=[]", "train.patience=null", f"train.checkpoint_every={STEPS}"]
    code = main([name.split("/")[0], "train", name, "--run", "run", "--device", "cpu", *overrides])
    assert code == 0, capfd.readouterr().err
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == STEPS
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.95 * first, losses

from __future__ import annotations

import math

import pytest
import torch

import densekit.train.propose
import densekit.train.sizes
from densekit.config import Config
from densekit.datasets.survey import survey_seg, survey_sr
from densekit.errors import ConfigError, DeviceError
from densekit.models import create_model
from densekit.tasks import create_task
from densekit.train.propose import Costs, around, count_evaluations, count_steps, measure, propose, spread_out
from densekit.train.sizes import ASKED, SIZES, SMALLEST_CROP, Size, ask_for, choose_size, fitted, start_from
from tests.training_data import write_masked, write_pictures

CPU = torch.device("cpu")
LONG = 600  # minutes: enough on a busy machine
TINY = {
    "seg": {"name": "fc_densenet", "num_init_features": 4, "growth_rate": 4, "num_pools": 2, "num_layers": 1},
    "sr": {"name": "rdn", "num_features": 4, "num_blocks": 1, "num_layers": 1, "growth_rate": 4},
}


@pytest.fixture(autouse=True)
def _tiny(tmp_path, monkeypatch):
    """Networks of a few milliseconds, the second of which never has time enough; and two steps of each."""
    monkeypatch.chdir(tmp_path)
    small = {task: (Size(model, 32, 2), Size(model, 32, 2, 10**9)) for task, model in TINY.items()}
    monkeypatch.setattr(densekit.train.propose, "SIZES", small)
    monkeypatch.setattr(densekit.train.propose, "REHEARSED_STEPS", 3)


def build(arguments):
    return create_model(arguments.pop("name"), **arguments)


@pytest.mark.parametrize("task", SIZES)
def test_sizes_go_up_and_can_be_built(task):
    sizes = SIZES[task]
    own = {"scale": 2} if task == "sr" else {"num_classes": 3}
    with torch.device("meta"):
        weights = [sum(p.numel() for p in build({**size.model, **own}).parameters()) for size in sizes]
    steps = [size.least_steps for size in sizes]
    assert weights == sorted(weights)
    assert steps == sorted(steps)
    assert steps[0] == 0


@pytest.mark.parametrize(
    ("costs", "seconds", "chosen", "tried"),
    [
        ([0.1, 0.2, 0.5], 30, 0, 1),  # twice the first would take 40 s for 200 steps
        ([0.1, 0.2, 0.5], 60, 1, 2),  # the third would take 400 s
        ([0.1, 0.5, 0.6], 60, 0, 2),  # the second takes 100 s, more than was thought
        ([0.1, 0.2, 0.5], 500, 2, 3),
        ([0.1, math.inf, 0.5], 500, 0, 2),  # it does not fit the memory
        ([9.0, 9.0, 9.0], 1, 0, 1),
    ],
)
def test_the_largest_network_with_time_enough_is_chosen(monkeypatch, costs, seconds, chosen, tried):
    sizes = [Size({}, 32, 2, least) for least in (0, 200, 1000)]
    asked = []

    def cost(size, own, device):
        asked.append(size)
        return costs[sizes.index(size)]

    monkeypatch.setattr(densekit.train.sizes, "seconds_on_noise", cost)
    assert choose_size(sizes, {}, seconds, CPU) is sizes[chosen]
    assert len(asked) == tried


def test_a_network_that_memory_does_not_hold_costs_forever(monkeypatch):
    class Large(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(1))

        def forward(self, x):
            raise RuntimeError(message)

    monkeypatch.setattr(densekit.train.sizes, "create_model", lambda name: Large())
    message = "DefaultCPUAllocator: can't allocate memory"
    assert densekit.train.sizes.seconds_on_noise(Size({"name": "large"}, 8, 1), {}, CPU) == math.inf
    message = "something else"
    with pytest.raises(RuntimeError, match="something else"):
        densekit.train.sizes.seconds_on_noise(Size({"name": "large"}, 8, 1), {}, CPU)


def test_steps_fill_the_time_but_for_a_reserve():
    costs = Costs(start=6.0, step=0.08, evaluation=0.25)
    evaluations = count_evaluations(costs, 24)
    steps = count_steps(costs, 24, evaluations)
    assert 1 <= evaluations <= 3
    assert steps == 150  # (0.9 * 24 - 6 - 3 * (2 * 0.25 + 0.5)) / 0.08 = 157
    assert steps * costs.step + around(costs, evaluations) <= 24
    assert count_evaluations(costs, 3600) == 10
    assert count_steps(costs, 3600, 10) == 40_000
    assert count_evaluations(costs._replace(evaluation=100.0), 60) == 1


def test_too_little_time_is_refused_with_how_much_it_takes():
    costs = Costs(start=6.0, step=0.5, evaluation=1.0)
    with pytest.raises(ConfigError) as caught:
        count_steps(costs, 15, 1)
    assert str(caught.value) == (
        "--minutes 0.25: start-up and evaluation take 11 s and a step 0.50 s here, which leaves no time to learn; "
        "give 1.4 or more"
    )
    assert count_steps(costs, 1.4 * 60, 1) >= 120


@pytest.mark.parametrize(("steps", "evaluations", "seconds"), [(20, 1, 2.0), (150, 2, 0.1), (40_000, 10, 0.08)])
def test_a_run_of_any_length_evaluates_and_saves_as_often_as_is_meant(steps, evaluations, seconds):
    sections = {"data": {"augment": "microscopy"}, "optim": {}, "train": {}}
    comments = {}
    spread_out(sections, comments, steps, evaluations, seconds)
    train = sections["train"]
    assert sections["data"]["augment"] == ("light" if steps < 500 else "microscopy")
    assert (comments != {}) == (steps < 500)
    assert sections["optim"]["warmup_steps"] < steps
    assert math.ceil(steps / train["eval_every"]) == evaluations
    assert 1 <= train["checkpoint_every"] <= steps
    assert train["checkpoint_every"] == steps or train["checkpoint_every"] * seconds >= 100
    assert 0.5 <= train["ema_decay"] <= 0.999


def test_crops_fit_the_pictures(tmp_path):
    write_masked(tmp_path / "cells", height=50, width=70)
    write_pictures(tmp_path / "photos", height=50, width=70)
    cells, photos = survey_seg(["cells"]), survey_sr(["photos"], scale=2)
    assert fitted(Size({}, 224, 4), cells, "seg", 1).crop_size == 48
    assert fitted(Size({}, 32, 4), cells, "seg", 1).crop_size == 32
    assert fitted(Size({}, 48, 4), photos, "sr", 2).crop_size == 16
    write_pictures(tmp_path / "photos", 1, height=20, width=20, seed=9)
    assert fitted(Size({}, 48, 4), survey_sr(["photos"], scale=2), "sr", 2).crop_size == SMALLEST_CROP["sr"]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_segmentation_is_proposed_that_trains(tmp_path, classes):
    write_masked(tmp_path / "cells", count=5, classes=classes)
    made = propose(survey_seg(["cells"]), "seg", LONG, CPU)
    config = Config.model_validate(made.sections)
    assert config.model.kwargs["num_classes"] == (1 if classes == 2 else 3)
    assert config.train.loss == ("bce+dice" if classes == 2 else "ce+dice")
    assert config.data.val_share == 0.2
    steps = config.train.total_steps
    assert config.train.freeze_norm_step == (steps // 2 if steps >= 2000 else None)
    assert made.total_steps == config.train.total_steps > 100
    assert 0.5 * 60 * LONG < made.seconds <= 60 * LONG
    assert made.evaluations <= 10
    assert create_task(config).describe_data().startswith("data: 4 images with masks to train on, 1 to evaluate on")
    assert made.comments.keys() <= {f"{name}.{key}" for name, keys in made.sections.items() for key in keys}


def test_a_super_resolution_is_proposed_that_trains(tmp_path):
    write_pictures(tmp_path / "photos", 5, height=70, width=80)
    made = propose(survey_sr(["photos"], scale=3), "sr", LONG, CPU, scale=3)
    config = Config.model_validate(made.sections)
    assert (config.model.kwargs["scale"], config.train.crop_size) == (3, 16)
    assert "freeze_norm_step" not in made.sections["train"]
    assert create_task(config).describe_data() == "data: 4 pictures as 4 pairs to train on, 1 to evaluate on"


def test_rare_classes_are_looked_for(tmp_path):
    folder = write_masked(tmp_path / "cells", classes=2)
    from densekit.image import read_mask, write_mask

    for path in (folder / "masks").iterdir():
        ids = read_mask(path)
        ids[4:] = 0
        write_mask(path, ids)
    made = propose(survey_seg(["cells"]), "seg", LONG, CPU)
    assert made.sections["data"]["focus"] == "foreground"
    assert "class_weights" not in made.sections["train"]
    for path in (folder / "masks").iterdir():
        ids = read_mask(path)
        ids[:, ::2][ids[:, ::2] == 0] = 2
        write_mask(path, ids)
    made = propose(survey_seg(["cells"]), "seg", LONG, CPU)
    assert made.sections["data"]["focus"] == "balanced"
    assert made.sections["train"]["class_weights"] == "sqrt-median-freq"
    Config.model_validate(made.sections)


def test_networks_and_weights_are_those_asked_for(tmp_path):
    write_masked(tmp_path / "cells", height=48, classes=2)
    made = propose(survey_seg(["cells"]), "seg", LONG, CPU, weights="fc-densenet-nuclei")
    assert made.sections["train"]["initial_weights"] == "fc-densenet-nuclei"
    assert made.parameters == 163_033
    assert ask_for("unet", "seg") == ASKED["seg"]._replace(model={"name": "unet"})
    assert start_from("rdn-tiny-x2", "sr").model["num_blocks"] == 5
    with pytest.raises(ConfigError, match="--model rdn: is for task sr, not seg"):
        ask_for("rdn", "seg")
    with pytest.raises(ConfigError, match="model 'rdm': no such architecture; did you mean 'rdn'"):
        ask_for("rdm", "sr")
    with pytest.raises(ConfigError, match="--from rdn-tiny-x2: is for task sr, not seg"):
        start_from("rdn-tiny-x2", "seg")


def test_norms_are_frozen_in_long_runs_alone(tmp_path, monkeypatch):
    write_masked(tmp_path / "cells", count=5)
    found = survey_seg(["cells"])
    monkeypatch.setattr(densekit.train.propose, "measure", lambda *_: Costs(5.0, 0.1, 0.1))
    short, long = (propose(found, "seg", minutes, CPU).sections["train"] for minutes in (1, 10))
    assert short["total_steps"] < 2000 < long["total_steps"]
    assert "freeze_norm_step" not in short
    assert long["freeze_norm_step"] == long["total_steps"] // 2


@pytest.mark.parametrize(("seconds", "threads"), [({1: 0.1, 2: 8.0}, 1), ({1: 0.1, 2: 0.06}, None)])
def test_the_faster_number_of_threads_is_kept(tmp_path, monkeypatch, seconds, threads):
    own = torch.get_num_threads()
    write_masked(tmp_path / "cells", count=5)
    measured = lambda *_: iter([1.0, *[seconds[torch.get_num_threads()]] * 3])  # noqa: E731
    monkeypatch.setattr(densekit.train.propose, "seconds_of_steps", measured)
    torch.set_num_threads(2)
    try:
        made = propose(survey_seg(["cells"]), "seg", LONG, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(own)
    assert made.sections["train"].get("threads") == threads
    assert made.costs.step == min(seconds.values())
    assert made.where == ("cpu with 1 thread" if threads else "cpu with 2 threads")


def test_too_little_memory_has_its_error(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    write_masked(tmp_path / "cells", count=5)
    monkeypatch.setattr(densekit.train.propose, "add_gradients", fail)
    with pytest.raises(DeviceError, match="2 crops of 32 pixels, or a whole validation picture, do not fit cpu memory"):
        propose(survey_seg(["cells"]), "seg", LONG, CPU)


def test_a_measurement_leaves_the_first_weights_as_they_are(tmp_path):
    write_masked(tmp_path / "cells", count=5)
    config = Config.model_validate(propose(survey_seg(["cells"]), "seg", LONG, CPU).sections)
    task = create_task(config)
    net = task.build_model().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    costs = measure(task, config, net, CPU, 1.5)
    assert costs.start > 1.5
    assert min(costs.step, costs.evaluation) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())

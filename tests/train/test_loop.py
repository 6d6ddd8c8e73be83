from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest
import torch

from densekit.cards import read_card
from densekit.checkpoint import load_model
from densekit.errors import CheckpointError, ConfigError, DataError, Interrupted
from densekit.tasks import create_task
from densekit.train import train
from densekit.train.run import Run
from densekit.train.state import load_state, save_state
from tests.training_data import seg_config, sr_config, write_masked, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("sr") / "pictures")


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return write_masked(tmp_path_factory.mktemp("seg") / "masked")


@pytest.fixture
def config_of(pictures, masked):
    return lambda task, **options: sr_config(pictures, **options) if task == "sr" else seg_config(masked, **options)


def run(config, folder, **options):
    return train(create_task(config), config, folder, **options)


def records(folder):
    """The lines of the log, without what the clock and the machine say."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    costs = ("steps_per_s", "seconds", "memory")
    return [{key: value for key, value in line.items() if key not in costs} for line in lines]


def results(folder):
    """All that a run leaves behind and that must not depend on its interruptions."""
    files = [*folder.glob("*.safetensors"), max(folder.glob("checkpoints/*"))]
    return {path.name: path.read_bytes() for path in files}, records(folder)


class Disturbed:
    """A task that does something once, at one forward pass."""

    def __init__(self, task, at, act):
        self.task, self.left, self.act = task, at, act

    def __getattr__(self, name):
        return getattr(self.task, name)

    def loss(self, net, batch):
        self.left -= 1
        loss = self.task.loss(net, batch)
        return self.act(loss) if self.left == -1 else loss


def send(signum):
    def act(loss):
        os.kill(os.getpid(), signum)
        return loss

    return act


def crash(loss):
    raise MemoryError("the power fails")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, pictures, masked):
    """What runs of 12 steps leave, by task."""
    folders = {task: tmp_path_factory.mktemp("undisturbed") / task for task in ("sr", "seg")}
    run(sr_config(pictures), folders["sr"])
    run(seg_config(masked), folders["seg"])
    return {task: results(folder) for task, folder in folders.items()}


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_a_training_learns_and_leaves_a_model_that_rebuilds_itself(tmp_path, config_of, task):
    config = config_of(task, total_steps=30, eval_every=10, checkpoint_every=30)
    figures = run(config, tmp_path / "run")
    losses = [line["loss"] for line in records(tmp_path / "run") if "loss" in line]
    assert len(losses) == 30
    assert np.mean(losses[-10:]) < (0.9 if task == "sr" else 0.6) * np.mean(losses[:10])

    net, card = load_model(tmp_path / "run" / "last.safetensors")
    assert (card.task, card.step, card.arguments) == (task, 30, config.model.kwargs)
    assert card.metrics["protocol"] == ("rdn-y" if task == "sr" else "dataset-iou")
    with torch.no_grad():
        assert create_task(config).evaluate(net.eval()) == pytest.approx(figures, abs=1e-5)
    best = max(line.get("psnr", line.get("miou", -1)) for line in records(tmp_path / "run"))
    assert read_card(tmp_path / "run" / "best.safetensors").metrics["psnr" if task == "sr" else "miou"] == best


@pytest.mark.parametrize(
    ("task", "step", "signum"),
    [("sr", 0, signal.SIGTERM), ("sr", 7, signal.SIGINT), ("seg", 4, signal.SIGINT), ("seg", 10, signal.SIGTERM)],
)
def test_a_run_that_a_signal_ends_is_saved_and_continues_to_the_same_bytes(
    tmp_path, config_of, undisturbed, task, step, signum
):
    config = config_of(task)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(
        Interrupted, match=rf"interrupted at step {step + 1}, saved in .*continue with --resume"
    ) as stop:
        train(Disturbed(create_task(config), step, send(signum)), config, tmp_path)
    assert stop.value.exit_code == {signal.SIGTERM: 143, signal.SIGINT: 130}[signum]
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    run(config, tmp_path, resume=True)
    assert results(tmp_path) == undisturbed[task]  # weights, averages and optimizer: the files' very bytes


@pytest.mark.parametrize(("task", "step"), [("sr", 2), ("sr", 11), ("seg", 7)])
def test_a_run_that_dies_between_two_states_continues_to_the_same_bytes(tmp_path, config_of, undisturbed, task, step):
    config = config_of(task)
    with pytest.raises(MemoryError):
        train(Disturbed(create_task(config), step, crash), config, tmp_path)
    run(config, tmp_path, resume=True)
    assert results(tmp_path) == undisturbed[task]  # weights, averages and optimizer: the files' very bytes


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_number_of_workers_may_change_at_every_resume(tmp_path, masked, undisturbed):
    for step, workers in ((3, 1), (5, 2)):
        config = seg_config(masked, data={"num_workers": workers})
        with pytest.raises(Interrupted):
            train(Disturbed(create_task(config), step, send(signal.SIGTERM)), config, tmp_path, resume=True)
    run(seg_config(masked), tmp_path, resume=True)
    files, log = results(tmp_path)
    assert log == undisturbed["seg"][1]
    assert all(files[name] == undisturbed["seg"][0][name] for name in ("best.safetensors", "last.safetensors"))


def test_a_damaged_newest_state_costs_the_steps_since_the_one_before(tmp_path, config_of, undisturbed, capsys):
    config = config_of("sr")
    with pytest.raises(MemoryError):
        train(Disturbed(create_task(config), 9, crash), config, tmp_path)
    newest = tmp_path / "checkpoints" / "state-00000008.dk"
    newest.write_bytes(newest.read_bytes()[:-100])
    run(config, tmp_path, resume=True)
    warning = "state-00000008.dk: its bytes are not those that were written; damaged; going back to the state before"
    assert warning in capsys.readouterr().err
    assert results(tmp_path) == undisturbed["sr"]


def test_a_run_without_a_whole_state_is_not_begun_anew(tmp_path, config_of):
    config = config_of("sr", total_steps=4)
    run(config, tmp_path)
    (tmp_path / "checkpoints" / "state-00000004.dk").write_bytes(b"")
    for resume in (True, False):
        with pytest.raises(CheckpointError, match="no state in it is whole; start anew with another --run"):
            run(config, tmp_path, resume=resume)


def test_accumulated_passes_take_the_step_of_one_large_batch(tmp_path, pictures):
    whole = sr_config(pictures, batch_size=4, total_steps=3)
    parts = sr_config(pictures, batch_size=2, accumulate=2, total_steps=3)
    run(whole, tmp_path / "whole")
    run(parts, tmp_path / "parts")
    losses = [[line["loss"] for line in records(tmp_path / name) if "loss" in line] for name in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_an_accumulating_run_continues_to_the_same_bytes(tmp_path, masked):
    config = seg_config(masked, accumulate=2, total_steps=6, checkpoint_every=2)
    run(config, tmp_path / "whole")
    with pytest.raises(MemoryError):
        train(Disturbed(create_task(config), 7, crash), config, tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_bf16_trains_float32_weights(tmp_path, config_of, task):
    run(config_of(task, precision="bf16", total_steps=4), tmp_path)
    state = load_state(tmp_path / "checkpoints" / "state-00000004.dk")
    assert {t.dtype for t in state["net"].values() if t.is_floating_point()} == {torch.float32}
    single = tmp_path / "fp32"
    run(config_of(task, total_steps=4), single)
    losses = [[line["loss"] for line in records(folder) if "loss" in line] for folder in (tmp_path, single)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != losses[1]


def test_weights_that_are_not_finite_are_not_saved(tmp_path, config_of):
    """A weight runs away in step 3, the last one before a state; the next loss would tell, but too late."""
    config = config_of("sr", eval_every=4)
    task = create_task(config)
    net = task.build_model()
    task.build_model = lambda: net

    def run_away(loss):
        with torch.no_grad():
            net.sfe1.bias[0] = math.inf
        return loss

    with pytest.raises(DataError, match="step 3, draws 6 to 7: some weights are not finite"):
        train(Disturbed(task, 3, run_away), config, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert not (tmp_path / "last.safetensors").exists()


def test_figures_that_are_not_finite_are_left_out(tmp_path, config_of):
    config = config_of("sr", total_steps=1)
    task = Disturbed(create_task(config), 9, None)
    task.evaluate = lambda net: {"psnr": math.inf, "pictures": 1.0}
    assert train(task, config, tmp_path) == {"pictures": 1.0}
    assert not (tmp_path / "best.safetensors").exists()


def test_a_run_without_validation_data_has_no_figures_and_no_best(tmp_path, pictures):
    assert run(sr_config(pictures, data={"val": []}, total_steps=2), tmp_path) == {}
    assert read_card(tmp_path / "last.safetensors").metrics == {}
    assert not (tmp_path / "best.safetensors").exists()


def test_a_finished_run_returns_its_figures_again(tmp_path, config_of):
    config = config_of("sr", total_steps=2)
    figures = run(config, tmp_path)
    before = results(tmp_path)
    assert run(config, tmp_path, resume=True) == figures != {}
    assert results(tmp_path) == before


def test_a_run_is_not_overwritten(tmp_path, config_of):
    config = config_of("sr", total_steps=4)
    run(config, tmp_path)
    with pytest.raises(ConfigError, match="already holds a run at step 4; add --resume or choose another --run"):
        run(config, tmp_path)


def test_the_config_of_a_run_stays_but_for_what_the_weights_do_not_see(tmp_path, config_of):
    run(config_of("sr", total_steps=4), tmp_path)
    before = results(tmp_path)
    other = config_of("sr", total_steps=8, seed=6, keep=3)
    with pytest.raises(ConfigError) as error:
        run(other, tmp_path, resume=True)
    assert "began with another config: train.seed (5 -> 6), train.total_steps (4 -> 8); take these back" in str(
        error.value
    )
    free = {"log_every": 9, "eval_every": 9, "checkpoint_every": 9, "keep": 9, "threads": None}
    run(config_of("sr", total_steps=4, data={"num_workers": 1}, **free), tmp_path, resume=True)
    assert results(tmp_path) == before
    assert "log_every: 9" in (tmp_path / "config.yaml").read_text()


def test_a_state_without_settings_and_fingerprint_continues_with_the_very_same_config_alone(tmp_path, config_of):
    config = config_of("sr", total_steps=4)
    run(config, tmp_path)
    path = tmp_path / "checkpoints" / "state-00000004.dk"
    new = ("settings", "fingerprint", "figures")
    save_state(path, {key: value for key, value in load_state(path).items() if key not in new})
    assert run(config, tmp_path, resume=True) == {}
    with pytest.raises(ConfigError, match=r"began with another config: see config.yaml in the run"):
        run(config_of("sr", total_steps=4, seed=6), tmp_path, resume=True)


def test_a_run_continues_only_with_its_data(tmp_path):
    config = sr_config(write_pictures(tmp_path / "pictures"), total_steps=2)
    run(config, tmp_path / "run")
    (tmp_path / "pictures" / "2.png").unlink()
    with pytest.raises(ConfigError, match=r"began with other data: 6 files \w+, now 4 files \w+ .*restore the data"):
        run(config, tmp_path / "run", resume=True)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path, config_of):
    config, (reader, writer) = config_of("sr", total_steps=2), os.pipe()
    holder = os.fork()
    if holder == 0:
        with Run(tmp_path, 2).locked():
            os.write(writer, b"held")
            signal.pause()
        os._exit(0)
    try:
        assert os.read(reader, 4) == b"held"
        with pytest.raises(ConfigError, match=f"in use by process {holder}; wait or choose another --run") as error:
            run(config, tmp_path)
        assert error.value.exit_code == 2
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    run(config, tmp_path)  # the lock of a killed process holds nobody up


def test_progress_off_a_terminal_is_a_line_for_each_tenth(tmp_path, config_of, capsys):
    run(config_of("sr", total_steps=20, eval_every=20), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "steps/s" in line]
    assert [line.split()[1] for line in lines] == [f"{step}/20" for step in range(2, 21, 2)]
    assert all("min left" in line and "loss" in line for line in lines)

"""Trackers, against small modules with the real ones' signatures."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from densekit import ranks
from densekit.errors import ConfigError
from densekit.tasks import create_task
from densekit.train import train
from densekit.train.run import Run
from densekit.train.trackers import check_trackers, tracked
from tests.train.test_loop import Disturbed, crash, results
from tests.training_data import sr_config, write_pictures

NAMES = ("tensorboard", "trackio", "wandb")
LOGGED = {"loss", "lr", "steps_per_s", "seconds", "memory", "psnr"}


@pytest.fixture
def fakes(monkeypatch):
    """The modules, fresh."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("fakes")))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    modules = {name: importlib.import_module(name) for name in NAMES}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", modules["tensorboard"])
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, modules[name])  # taken back afterwards
    return modules


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("sr") / "pictures")


def config_of(pictures, *names, **options):
    return sr_config(pictures, trackers=list(names), **options)


def steps_of(rows, key):
    return [step for step, figures in rows if key in figures]


def log_of(folder):
    """Figure -> (step, value) of each line of the log."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for key in record.keys() - {"step", "loss_hex"}:
            found.setdefault(key, []).append((record["step"], record[key]))
    return found


def test_each_gets_config_figures_and_pictures_and_stdout_stays_clean(fakes, pictures, tmp_path, capsys):
    config = config_of(pictures, *NAMES)
    train(create_task(config), config, tmp_path / "run")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a line on stdout" in captured.err
    assert "warning" not in captured.err

    events = fakes["tensorboard"].shown(tmp_path / "run" / "tensorboard")
    log = log_of(tmp_path / "run")
    assert log.keys() == LOGGED
    for key in LOGGED:
        assert [(step, value) for tag, step, value in events if tag == key] == log[key]
    assert [(tag, step) for tag, step, _ in events if tag == "samples/0"] == [("samples/0", 6), ("samples/0", 12)]
    assert "learning_rate: 0.005" in next(text for tag, _, text in events if tag == "config")

    for name in ("trackio", "wandb"):
        (stored,) = fakes[name].STORED.values()
        for key in LOGGED:
            assert [(step, row[key]) for step, row in stored if key in row] == log[key]
        assert steps_of(stored, "samples/0") == [6, 12]
        assert next(row for _, row in stored if "samples/0" in row)["samples/0"].pixels.shape[1:] == (1568, 3)
        assert fakes[name].INITS[0]["config"] == config.model_dump(mode="json")
    assert fakes["wandb"].INITS[0]["dir"] == str(tmp_path / "run")
    assert fakes["wandb"].INITS[0]["console"] == "off"
    assert not fakes["trackio"].OPEN
    assert not any(writer.is_open for files in fakes["tensorboard"].FILES.values() for writer in files)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_that_crashes_and_goes_on_has_each_step_once_everywhere(fakes, pictures, tmp_path, monkeypatch, mode):
    if mode == "online":
        monkeypatch.setenv("WANDB_MODE", mode)
    config = config_of(pictures, *NAMES)
    folder = tmp_path / "run"
    for at in (10, 1):  # the first ends after the evaluation at 6, the second before any state of its own
        with pytest.raises(MemoryError):
            train(Disturbed(create_task(config), at, crash), config, folder, resume=at != 10)
    train(create_task(config), config, folder, resume=True)
    stored = {name: next(iter(fakes[name].STORED.values())) for name in ("trackio", "wandb")}
    assert [len(fakes[name].STORED) for name in ("trackio", "wandb")] == [1, 1]
    stored["tensorboard"] = [
        (step, {tag: value}) for tag, step, value in fakes["tensorboard"].shown(folder / "tensorboard")
    ]
    for name, rows in stored.items():
        assert steps_of(rows, "loss") == list(range(1, 13)), name
        assert steps_of(rows, "psnr") == [6, 12], name
        last = {step: row["loss"] for step, row in rows if "loss" in row}
        assert list(last.items()) == log_of(folder)["loss"], name
    assert {init["id"] for init in fakes["wandb"].INITS} == {fakes["wandb"].INITS[0]["id"]}
    assert {init["mode"] for init in fakes["wandb"].INITS} == {mode}
    assert len({init["name"] for init in fakes["trackio"].INITS}) == 1


def test_one_that_joins_a_run_later_gets_what_was_before(fakes, pictures, tmp_path):
    first = config_of(pictures)
    with pytest.raises(MemoryError):
        train(Disturbed(create_task(first), 9, crash), first, tmp_path / "run")
    config = config_of(pictures, *NAMES)
    train(create_task(config), config, tmp_path / "run", resume=True)
    rows = [next(iter(fakes[name].STORED.values())) for name in ("trackio", "wandb")]
    rows.append([(s, {tag: v}) for tag, s, v in fakes["tensorboard"].shown(tmp_path / "run" / "tensorboard")])
    for stored in rows:
        assert steps_of(stored, "loss") == list(range(1, 13))
        assert steps_of(stored, "psnr") == [6, 12]


def test_weights_states_and_log_know_nothing_of_trackers(fakes, pictures, tmp_path):
    for name, config in (("without", config_of(pictures)), ("with", config_of(pictures, *NAMES))):
        train(create_task(config), config, tmp_path / name)
    (plain, lines), (tracked_too, same_lines) = (results(tmp_path / name) for name in ("without", "with"))
    assert lines == same_lines
    assert plain["last.safetensors"] == tracked_too["last.safetensors"]
    assert plain["best.safetensors"] == tracked_too["best.safetensors"]


@pytest.mark.parametrize("when", ["at its start", "while training"])
def test_one_that_fails_is_left_out_with_one_warning_and_training_goes_on(fakes, pictures, tmp_path, capsys, when):
    config = config_of(pictures, "wandb", "trackio")

    class Failing(Disturbed):
        def build_model(self):
            if when == "at its start":
                fakes["wandb"].FAULT.append(OSError("no route\nto host"))
            return self.task.build_model()

    def fail(loss):
        fakes["wandb"].FAULT.append(OSError("no route\nto host"))
        return loss

    train(Failing(create_task(config), 4, fail), config, tmp_path / "run")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: wandb failed and is left out: OSError: no route; metrics.jsonl has all figures"]
    assert steps_of(next(iter(fakes["trackio"].STORED.values())), "loss") == list(range(1, 13))
    wandb = next(iter(fakes["wandb"].STORED.values()), [])
    assert steps_of(wandb, "loss") == ([] if when == "at its start" else [1, 2, 3, 4])
    assert len(log_of(tmp_path / "run")["loss"]) == 12


def test_wandb_is_offline_unless_the_user_says_otherwise(fakes, pictures, tmp_path, monkeypatch):
    config = config_of(pictures, "wandb", total_steps=1)
    train(create_task(config), config, tmp_path / "a")
    monkeypatch.setenv("WANDB_MODE", "online")
    train(create_task(config), config, tmp_path / "b")
    assert [(init["mode"], init["resume"]) for init in fakes["wandb"].INITS] == [("offline", None), ("online", "allow")]


def test_two_runs_of_one_name_are_two_at_a_tracker(fakes, pictures, tmp_path):
    config = config_of(pictures, "trackio", total_steps=1)
    for place in ("a", "b"):
        train(create_task(config), config, tmp_path / place / "run")
    assert len(fakes["trackio"].STORED) == 2


def test_a_damaged_note_of_a_tracker_begins_anew_there(fakes, pictures, tmp_path):
    config = config_of(pictures, "trackio", total_steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".trackio.json").write_text('{"id": "a", "sent": [1]}')
    train(create_task(config), config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / ".trackio.json").read_text())["sent"] == {}
    assert steps_of(next(iter(fakes["trackio"].STORED.values())), "loss") == [1]


def test_only_the_process_that_writes_opens_any(fakes, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    run = Run(tmp_path, 1)
    with tracked(run, config_of(pictures, *NAMES), 0):
        run.log({"step": 1, "loss": 1.0})
        assert not run.trackers.working
    assert not any(fakes[name].INITS for name in ("trackio", "wandb"))


def test_figures_that_are_no_numbers_stay_in_the_log(fakes, pictures, tmp_path):
    run = Run(tmp_path, 1)
    with tracked(run, config_of(pictures, "trackio"), 0):
        run.log({"step": 1, "skipped": "the loss is nan"})
        run.log({"step": 2, "loss": 1.5, "loss_hex": "0x1.8p+0", "flag": True})
    assert next(iter(fakes["trackio"].STORED.values())) == [(2, {"loss": 1.5})]


@pytest.mark.parametrize("name", NAMES)
def test_one_that_is_not_installed_is_named_with_the_command_before_anything_is_done(
    pictures, tmp_path, monkeypatch, name
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else find(wanted))
    config = config_of(pictures, name)
    task = create_task(config)
    with pytest.raises(ConfigError) as caught:
        train(task, config, tmp_path / "run")
    assert str(caught.value) == (
        f"train.trackers: {name} is not installed; run: pip install 'densekit[{name}]', or leave it out"
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    found = importlib.util.find_spec("wandb")
    if found is not None and found.origin is not None:
        pytest.skip("wandb is installed")
    with pytest.raises(ConfigError):
        check_trackers(["wandb"])

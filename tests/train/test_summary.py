"""The report that a run leaves."""

from __future__ import annotations

import errno
import json
import signal
import time

import pytest

from densekit.config import Config, GanConfig
from densekit.errors import Interrupted
from densekit.tasks import create_task
from densekit.train import summary, train
from densekit.train.run import Run
from densekit.train.summary import changed, conclude, read_log, time_text
from tests.report.page import parse
from tests.train.test_endings import Scored
from tests.train.test_loop import Disturbed, crash, send
from tests.training_data import seg_config, sr_config, write_masked, write_pictures


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {"sr": write_pictures(root / "pictures", 5), "seg": write_masked(root / "masked", 5)}


def config_of(folders, task, **options):
    return sr_config(folders["sr"], **options) if task == "sr" else seg_config(folders["seg"], **options)


def page_of(folder):
    return parse((folder / "report.html").read_text())


def cells_of(page, section):
    """First cell -> the others, of the rows of a section's tables."""
    rows = [row for table in page.find("section", id=section)[0].find("tbody") for row in table.find("tr")]
    texts = [[child.text for child in row.children] for row in rows]
    return {cells[0]: cells[1] if len(cells) == 2 else cells[1:] for cells in texts}


def charts_of(page):
    return [figure.find("figcaption")[0].text for figure in page.find("section", id="curves")[0].find("figure")]


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_a_run_that_is_over_leaves_a_report_with_all_pictures(folders, tmp_path, task):
    config = config_of(folders, task)
    figures = train(create_task(config), config, tmp_path / "my run")
    page = page_of(tmp_path / "my run")
    assert page.find("h1")[0].text == "my run"
    metric = "psnr" if task == "sr" else "miou"
    shown = float(page.find("p", class_="value")[0].text.split()[0])
    assert shown == pytest.approx(figures[metric], abs=0.006 if task == "sr" else 0.00006)
    names = [cell.text for cell in page.find("section", id="pictures")[0].find("th", scope="row")]
    assert sorted(names) == [f"{k}.png" for k in range(5)]
    assert len(page.find("article", class_="card")) == 5
    assert bool(page.find("section", id="confusion")) is (task == "seg")
    figure = ["PSNR (dB)"] if task == "sr" else ["mIoU", "accuracy"]
    assert charts_of(page) == ["loss", *figure, "learning rate", "steps per second", "peak memory (GiB)"]
    run = cells_of(page, "run")
    assert (run["state"], run["steps"], run["folder"]) == ("finished", "12 of 12", str(tmp_path / "my run"))
    assert run["device"].startswith("cpu, 1 thread, fp32")
    assert {"densekit", "torch", "numpy", "python"} <= run.keys()
    keys = cells_of(page, "config")
    assert keys["optim.learning_rate"] == (["0.005", "0.001"] if task == "sr" else ["0.02", "0.001"])
    assert keys["train.total_steps"] == ["12", "–"]
    assert "train.keep" not in keys


def test_the_report_of_a_run_without_validation_data_has_curves_alone(folders, tmp_path):
    for task in ("sr", "seg"):
        config = config_of(folders, task, data={"val": []})
        train(create_task(config), config, tmp_path / task)
        page = page_of(tmp_path / task)
        assert charts_of(page) == ["loss", "learning rate", "steps per second", "peak memory (GiB)"]
        assert not page.find("img")
        assert not page.find("section", id="pictures")
        assert page.find("div", class_="headline")[0].text.endswith("loss; no validation data, so no figure")


def test_a_run_under_way_has_a_report_with_its_samples_and_the_figures_of_all(folders, tmp_path, monkeypatch):
    config = config_of(folders, "sr", samples=2, total_steps=20)
    with pytest.raises(MemoryError):
        train(Disturbed(create_task(config), 14, crash), config, tmp_path)
    page = page_of(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if "psnr" in record][-1]
    assert page.find("p", class_="value")[0].text.startswith(f"{last['psnr']:.2f}")
    assert "all validation pictures, step 12 of 20" in page.find("div", class_="headline")[0].text
    assert cells_of(page, "run")["state"] == "under way"
    assert len(page.find("article", class_="card")) == 2
    assert cells_of(page, "conditions")["pictures"] == "the first 2"


def test_a_resumed_run_reports_all_of_its_parts(folders, tmp_path):
    config = config_of(folders, "sr")
    with pytest.raises(Interrupted):
        train(Disturbed(create_task(config), 7, send(signal.SIGINT)), config, tmp_path)
    before = read_log(Run(tmp_path, 1))[1]
    train(create_task(config), config, tmp_path, resume=True)
    curves, seconds = read_log(Run(tmp_path, 1))
    assert [step for step, _ in curves["loss"]] == list(range(1, 13))
    assert [step for step, _ in curves["psnr"]] == [6, 12]
    assert seconds > before > 0
    assert all(value > 0 for _, value in curves["steps_per_s"])


def test_a_run_that_is_over_makes_its_report_again_when_it_is_resumed(folders, tmp_path):
    config = config_of(folders, "sr")
    train(create_task(config), config, tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    train(create_task(config), config, tmp_path, resume=True)
    assert (tmp_path / "report.html").read_bytes() == first


def test_training_that_ends_early_says_so(folders, tmp_path):
    config = config_of(folders, "sr", total_steps=20, eval_every=2, patience=2)
    train(Scored(create_task(config), [3.0, 1.0, 2.0]), config, tmp_path)
    page = page_of(tmp_path)
    assert cells_of(page, "run")["state"] == "ended early"
    assert cells_of(page, "run")["steps"] == "6 of 20"
    assert len(page.find("article", class_="card")) == 5
    tiles = [element.text for element in page.find("dl", class_="tiles")[0].find("dd")]
    assert "3.00 dB" in tiles


@pytest.mark.parametrize(
    ("name", "times"), [("keep_samples", 2), ("to_page", 3), ("evaluate_enlarged", 3), ("atomic_write", 3)]
)
def test_a_report_that_cannot_be_made_is_a_warning_and_the_training_whole(
    folders, tmp_path, monkeypatch, capsys, name, times
):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "report.html")

    config = config_of(folders, "sr")
    monkeypatch.setattr(summary, name, fail)
    figures = train(create_task(config), config, tmp_path)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == times  # at two evaluations and at the end
    assert warnings[0] == (
        "warning: sample pictures or report could not be made (OSError: [Errno 28] No space left on device: "
        "'report.html'); the training itself is whole"
    )
    assert figures["psnr"] > 0
    assert (tmp_path / "last.safetensors").exists()
    assert list(tmp_path.glob("checkpoints/state-00000012.dk"))
    assert (tmp_path / "report.html").exists() is (name == "keep_samples")


def test_a_log_of_a_hundred_thousand_lines_is_a_page_of_less_than_five_megabytes(folders, tmp_path):
    config = config_of(folders, "sr", total_steps=5_000_000)
    task = create_task(config)
    run = Run(tmp_path, 1)
    line = '{{"step": {}, "loss": {}, "loss_hex": "0x1p-3", "lr": {}, "steps_per_s": 9.1, "seconds": {}, "memory": 9}}'
    lines = [line.format(50 * k, 0.5 / k + (k % 7) / 1e6, 1e-3 / k, 5.5 * k) for k in range(1, 100_001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1, "lo')
    began = time.process_time()
    conclude(task, task.build_model(), config, run, 5_000_000)
    assert time.process_time() - began < 20
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    page = page_of(tmp_path)
    assert charts_of(page) == ["loss", "learning rate", "steps per second", "peak memory (GiB)"]
    points = [len(line.attributes["points"].split()) for line in page.find("polyline")]
    assert max(points) <= 401
    assert cells_of(page, "run")["time"].startswith("152 h 46 min")


def test_what_differs_from_the_defaults_is_listed_with_them(folders):
    config = config_of(folders, "sr", loss="l1+0.1*fft", keep=2)
    rows = {key: (value, default) for key, value, default in changed(config)}
    assert rows["train.loss"] == ("l1+0.1*fft", "null")
    assert rows["model.name"] == ("rdn", None)
    assert rows["model.bicubic_skip"] == ("true", None)
    assert rows["train.crop_size"] == ("12", None)
    assert rows["data.train"] == (json.dumps([str(folders["sr"])]), None)
    assert "train.keep" not in rows
    assert "gan" not in rows
    judged = Config.model_validate({**config.model_dump(), "gan": {"weight": 0.25}})
    rows = {key: (value, default) for key, value, default in changed(judged)}
    assert rows["gan.weight"] == ("0.25", str(GanConfig().weight))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (9000, "2 h 30 min")]
)
def test_times_are_read_as_people_say_them(seconds, text):
    assert time_text(seconds) == text

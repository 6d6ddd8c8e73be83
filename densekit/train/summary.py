"""What a run leaves to look at: sheets of sample pictures and `report.html`, at each evaluation and at the end.

Of several processes only the one that writes makes them. A run never fails for them: what goes wrong is one warning.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from densekit import ranks
from densekit.config import Config
from densekit.evaluate.common import environment
from densekit.evaluate.samples import Given, Made, evaluate_enlarged, evaluate_segmented, views
from densekit.files import atomic_write, printable
from densekit.report import Evaluation, wording
from densekit.report.svg import Point
from densekit.report.training import Training, to_page
from densekit.tasks import Task
from densekit.tasks.common import scored_on
from densekit.train.progress import warn
from densekit.train.run import Run
from densekit.train.samples import classes_of, keep_samples
from densekit.train.trackers import numbers

MAX_PICTURES = 24  # that go through the network once more at the end of a run, to be shown
FIRST, LAST = ("loss", "d_loss", "gan_loss"), ("lr", "steps_per_s", "memory")  # of the curves; figures are between
GIB = 2**30


@torch.no_grad()
def show_progress(
    task: Task, net: nn.Module, config: Config, run: Run, step: int, figures: Mapping[str, float]
) -> None:
    """Keeps sheets of the first `train.samples` validation pictures, and writes the report with these.

    Args:
        task: with the pictures.
        net: was evaluated; runs once on each of them, in evaluation mode, so that no random state moves.
        config: of the run.
        run: where all goes; its trackers get the sheets, too.
        step: that is done.
        figures: of all validation pictures.
    """
    with only_warned("sample pictures or report"):
        if run.writes:
            samples = list(islice(task.samples(net.eval()), config.train.samples))
            run.trackers.show(step, keep_samples(samples, config, run.folder / "samples", step))
            given = ((sample, partial(views, sample, palette_of(config))) for sample in samples)
            evaluation = evaluate(given, task, config, figures) if samples or figures else None
            write(task, net, config, run, step, evaluation, is_over=False)


@torch.no_grad()
def conclude(task: Task, net: nn.Module, config: Config, run: Run, step: int) -> None:
    """Writes the report of a run that is over, with all validation pictures; arguments as for `show_progress`."""

    def again(index: int) -> Made:
        return views(next(task.samples(net, index)), palette_of(config))

    with only_warned("the report"):
        if run.writes:
            given = ((sample, partial(again, index)) for index, sample in enumerate(task.samples(net.eval())))
            first = list(islice(given, 1))  # none without validation data
            evaluation = evaluate(chain(first, given), task, config) if first else None
            write(task, net, config, run, step, evaluation, is_over=True)


@contextlib.contextmanager
def only_warned(what: str) -> Iterator[None]:
    """Makes a warning of whatever goes wrong inside."""
    try:
        yield
    except Exception as error:  # a full disk, too little memory, a picture that cannot be drawn
        warn(f"{what} could not be made ({type(error).__name__}: {printable(error)}); the training itself is whole")


def palette_of(config: Config) -> list[tuple[int, int, int]]:
    """Returns the colours of a segmentation's classes; none of a super-resolution."""
    return classes_of(config)[1] if config.task == "seg" else []


def evaluate(given: Given, task: Task, config: Config, figures: Mapping[str, float] | None = None) -> Evaluation:
    """Returns the figures of validation pictures with the conditions that the run knows."""
    if config.task == "sr":
        evaluation = evaluate_enlarged(given, task.protocol, figures)
    else:
        evaluation = evaluate_segmented(given, task.protocol, *classes_of(config), figures)
    first = f"the first {len(evaluation.rows)}" if figures is not None else evaluation.conditions["pictures"]
    evaluation.conditions |= {"pictures": first, "data": scored_on(config)}
    if config.task == "seg":
        evaluation.conditions["bn_mode"] = config.eval.bn_mode
    return evaluation


def write(
    task: Task, net: nn.Module, config: Config, run: Run, step: int, evaluation: Evaluation | None, *, is_over: bool
) -> None:
    """Writes `report.html`, whole or not at all."""
    total, name = config.train.total_steps, run.folder.resolve().name
    curves, seconds = read_log(run)
    how_far = f"{step:,} of {total:,}"
    facts = {"steps": how_far}
    if best := max(curves.get(task.metric, []), key=lambda point: point[1], default=None):
        label = wording.label(task.metric)
        facts[f"best {label}"] = f"{wording.show(task.metric, best[1])} {wording.unit(task.metric)}".rstrip()
        facts[f"best {label} at step"] = f"{int(best[0]):,}"
    if evaluation and curves.get("loss"):
        facts["loss"] = wording.show("loss", curves["loss"][-1][1])
    facts["time"] = time_text(seconds)
    basis = "all validation pictures"
    if evaluation:
        evaluation.title = name
        basis = wording.basis(evaluation) if is_over else basis
    page = to_page(
        Training(
            title=name,
            task=config.task,
            facts=facts,
            curves=curves,
            settings=changed(config),
            config=config.to_yaml(),
            conditions={
                "state": "finished" if step == total else "ended early" if is_over else "under way",
                "steps": how_far,
                "time": f"{time_text(seconds)}, evaluations counted",
                "network": f"{config.model.name}, {sum(p.numel() for p in net.parameters()):,} parameters",
                "data": ", ".join(config.data.train),
                "device": device_text(next(net.parameters()).device, config),
                "folder": str(run.folder),
                **environment(),
            },
            evaluation=evaluation,
            basis=f"{basis}, step {how_far}",
        ),
        max_pictures=MAX_PICTURES if is_over else config.train.samples,
    )
    atomic_write(run.folder / "report.html", page.encode())


def read_log(run: Run) -> tuple[dict[str, list[Point]], float]:
    """Returns what the log holds as curves by key, and the seconds that the run has taken."""
    found: dict[str, list[Point]] = {}
    step, seconds = 0, 0.0
    for record in run.records():
        figures = numbers(record)
        now = figures.pop("seconds", seconds)
        if now > seconds:  # the log's own speed is the mean since the start
            figures["steps_per_s"] = (record["step"] - step) / (now - seconds)
            step, seconds = record["step"], now
        for key, value in figures.items():
            found.setdefault(key, []).append((record["step"], value / GIB if key == "memory" else float(value)))
    order = [*FIRST, *(key for key in found if key not in (*FIRST, *LAST)), *LAST]
    return {key: found[key] for key in order if key in found}, seconds


def changed(config: Config) -> list[tuple[str, str, str | None]]:
    """Returns (key, value, default) of each key that is not at its default, or has none."""
    rows: list[tuple[str, str, str | None]] = []
    for name, section in config:
        if not isinstance(section, BaseModel):
            if section is not None:
                rows.append((name, plain(section), None))
            continue
        fields = type(section).model_fields
        for key, value in section.model_dump(mode="json").items():
            field = fields.get(key)
            has_default = field is not None and not field.is_required()
            default = plain(field.get_default(call_default_factory=True)) if field and has_default else None
            if plain(value) != default:
                rows.append((f"{name}.{key}", plain(value), default))
    return rows


def plain(value: Any) -> str:
    """Returns a value of a config as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def device_text(device: torch.device, config: Config) -> str:
    """Returns what a run computes on and how, such as "cpu, 1 thread, fp32"."""
    count = torch.get_num_threads()
    name = f"{device.type}, {count} thread{'s' * (count > 1)}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    several = f"{ranks.count()} processes ({config.train.parallel}), " if ranks.count() > 1 else ""
    return f"{several}{name}, {config.train.precision}"


def time_text(seconds: float) -> str:
    """Returns a time as people say it, such as "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

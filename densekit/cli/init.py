"""`densekit sr|seg init`: a config for the data at hand, and how long it will take here."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densekit import __version__
from densekit.cli import options
from densekit.cli.candidates import complete_models
from densekit.cli.process import tune_allocator
from densekit.errors import ConfigError
from densekit.files import atomic_write, printable

if TYPE_CHECKING:
    from densekit.datasets.survey import Survey
    from densekit.train.propose import Proposal

SUFFIXES = (".yaml", ".yml")
SHOWN = 12  # classes on a line


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what both commands take."""
    for option in (
        options.device,
        click.option("--overwrite", is_flag=True, help="Replace FILE if it exists; without it that is refused."),
        click.option(
            "--from", "weights", metavar="MODEL", shell_complete=complete_models,
            help="Start from a trained model, by name or file.",
        ),
        click.option("--model", "network", metavar="NAME", help="Network [default: the one that suits the time]."),
        click.option(
            "--minutes", type=click.FloatRange(min=0, min_open=True), default=10, show_default=True, metavar="M",
            help="How long training may take on this machine.",
        ),
        click.option("--val", multiple=True, metavar="DIR", help="Validation data [default: a fifth of DATA]."),
        click.option("-o", "--out", metavar="FILE.yaml", help="The config [default: NAME.yaml, of the data]."),
        click.argument("data", nargs=-1, required=True, metavar="DATA..."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command("init")
@_shared
@click.option("--scale", type=click.IntRange(2, 8), required=True, metavar="N", help="How much larger results are.")
def sr_init(data: tuple[str, ...], val: tuple[str, ...], scale: int, **given: Any) -> None:
    """Writes a config that trains on your pictures, and prints its path.

    DATA are folders of pictures, or one with train/ and val/; the low-resolution ones are made from them. The network
    and the number of steps are those that fit the time, measured here by a few steps of it on the data. Faulty data is
    refused with every fault.
    """

    def survey() -> Survey:
        from densekit.datasets.survey import survey_sr

        return survey_sr(data, val=val, scale=scale)

    _init("sr", data, survey, scale=scale, **given)


@click.command("init")
@_shared
@click.option("--classes", metavar="A,B,C", help="Names of the classes, in the order of their numbers.")
@click.option("--ignore-index", type=click.IntRange(0, 255), metavar="N", help="Label that means void [default: 255].")
def seg_init(
    data: tuple[str, ...], val: tuple[str, ...], classes: str | None, ignore_index: int | None, **given: Any
) -> None:
    """Writes a config that trains on your images and masks, and prints its path.

    DATA are folders that hold images/ and masks/, or train/ and val/ of that kind, or a folder of images and one of
    masks. Classes are counted, and for masks in colours a class map is proposed. The network and the number of steps
    are those that fit the time, measured here by a few steps of it on the data. Faulty data is refused with every
    fault.
    """
    names = [name.strip() for name in classes.split(",")] if classes else []

    def survey() -> Survey:
        from densekit.datasets.survey import survey_seg

        return survey_seg(data, val=val, classes=names, ignore_index=ignore_index)

    _init("seg", data, survey, **given)


def _init(
    task: str,
    data: Sequence[str],
    look: Callable[[], Survey],
    *,
    out: str | None,
    minutes: float,
    network: str | None,
    weights: str | None,
    overwrite: bool,
    device: str,
    scale: int | None = None,
) -> None:
    """Looks at the data, measures, and writes the config.

    Raises:
        ConfigError: no such network, too little time, or the file exists.
        DataError: faulty data; the faults are printed.
        CheckpointError: no such weights.
    """
    if network and weights:
        raise ConfigError("found --model and --from; a trained model brings its network, so give one of them")
    target = _target(out, data, overwrite)
    tune_allocator()
    survey = _shown(look)
    for line in _findings(survey, data):
        click.echo(line, err=True)

    began = time.monotonic()
    from densekit.predict.device import choose_device
    from densekit.train.propose import propose

    imports = time.monotonic() - began
    proposal = propose(
        survey,
        task,
        minutes,
        choose_device(device),
        imports=imports,
        scale=scale,
        name=network,
        weights=weights,
    )
    _write(target, task, data, survey, proposal, "" if device == "auto" else f" --device {device}")


def _target(out: str | None, data: Sequence[str], overwrite: bool) -> Path:
    """Returns the path of the config.

    Raises:
        ConfigError: it is no YAML file, or exists.
    """
    root = os.path.commonpath([os.path.realpath(folder) for folder in data])
    target = Path(out) if out else Path(f"{Path(root).name.removesuffix('.txt') or 'data'}.yaml")
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"-o {printable(target)}: expected a name that ends with .yaml")
    if os.path.lexists(target) and not overwrite:
        raise ConfigError(f"{printable(target)} already exists; add --overwrite or choose another -o")
    return target


def _shown(look: Callable[[], Survey]) -> Survey:
    """Returns the survey; prints faults, each where it makes the data unusable, else the first of a kind."""
    from densekit.datasets.checks.text import text_lines
    from densekit.datasets.survey import Faulty

    try:
        survey = look()
    except Faulty as error:
        for line in text_lines(error.result):
            click.echo(line, err=True)
        raise
    kinds = survey.result.kinds
    for fault in survey.result.warnings:
        number = kinds.pop(fault.kind, 0)
        if number:
            click.echo(f"warning: {fault}" + (f" (and {number - 1} more of this kind)" * (number > 1)), err=True)
    return survey


def _findings(survey: Survey, data: Sequence[str]) -> Iterator[str]:
    """Yields what there is to train on, in a few lines."""
    facts = survey.train
    small, large = ("x".join(map(str, facts[key])) for key in ("smallest", "largest"))
    masks = " with masks" if "masks" in facts else ""
    sizes = f"{small}" if facts["sizes"] == 1 else f"{facts['sizes']} sizes from {small} to {large}"
    many = "1 picture" if facts["pictures"] == 1 else f"{facts['pictures']} pictures"
    yield f"{', '.join(map(printable, data))}: {many}{masks}, {sizes}"
    if "masks" in facts:
        class_map = survey.data.get("class_map")
        shares = [f"{printable(n)} {s:.1%}" for n, s in zip(survey.data["classes"], survey.shares, strict=True)]
        more = f", and {len(shares) - SHOWN} more" if len(shares) > SHOWN else ""
        yield f"classes: {', '.join(shares[:SHOWN])}{more}"
        if facts["void_share"]:
            yield f"void: {facts['void_share']:.1%} of the pixels, label {survey.result.facts['ignore_index']}"
        if class_map:
            yield "masks in colours, read by " + ", ".join(f"{color} -> {label}" for color, label in class_map.items())
    if survey.data.get("val"):
        yield f"validation: {survey.result.facts['val']['pictures']} pictures of {_listed(survey.data['val'])}"
    elif survey.has_validation:
        yield f"validation: {survey.data['val_share']:.0%} of them, chosen by name"
    else:
        yield "validation: none, since one picture cannot do both; give others with --val to know how good it gets"


def _write(target: Path, task: str, data: Sequence[str], survey: Survey, proposal: Proposal, where: str) -> None:
    """Writes the config, prints its path, and says what comes next; `where` is the option that names the device."""
    from densekit.cli.batch import writing
    from densekit.config import parse_config
    from densekit.config.commented import commented_yaml

    cost = (
        f"about {max(proposal.seconds / 60, 0.1):.1f} minutes on {proposal.where}: {proposal.total_steps} steps of "
        f"{proposal.costs.step:.3f} s, start-up and evaluations counted"
    )
    kind = "Segmentation" if task == "seg" else f"Super-resolution x{proposal.sections['model']['scale']}"
    command = f"densekit {task} train {shlex.quote(str(target))}{where}"
    expected = "what the validation pictures will show" if survey.has_validation else "unknown, nothing validates"
    header = [
        f"{kind} of {survey.train['pictures']} pictures, proposed by densekit {__version__} for {_listed(data)}.",
        f"Expected: {expected}.",
        f"Cost: {cost}.",
        f"Command: {command}",
        f"Measured on {date.today().isoformat()}, before training: the cost alone.",
    ]
    text = commented_yaml([printable(line) for line in header], proposal.sections, proposal.comments)
    parse_config(text, source=printable(target))
    with writing(target):
        atomic_write(target, text.encode())
    model = proposal.sections["model"]["name"]
    click.echo(f"network: {model}, {proposal.parameters:,} parameters; {cost}", err=True)
    click.echo(os.fsencode(target))
    chosen = Path("runs", target.stem, "best.safetensors" if survey.has_validation else "last.safetensors")
    click.echo(f"next: {command}", err=True)
    words = [survey.pictures, "-m", str(chosen), *["--overlay"] * (task == "seg"), "-o", f"{Path('out', target.stem)}/"]
    click.echo(f"then: densekit {task} predict {shlex.join(words)}{where}", err=True)


def _listed(folders: Sequence[str]) -> str:
    return ", ".join(map(printable, folders))

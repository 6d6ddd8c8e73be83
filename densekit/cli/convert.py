"""`densekit encoder|sr|seg convert`: weights of others into checkpoints of densekit, and back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densekit.cli.options import Choice
from densekit.errors import ConfigError, suggest
from densekit.files import printable

if TYPE_CHECKING:
    from densekit.cards import Card
    from densekit.dialects import LoadReport

STATISTICS = {"imagenet": ("0.485,0.456,0.406", "0.229,0.224,0.225")}  # of RGB in 0..1: torchvision's, timm's, Keras'
OWN_SUFFIX = ".safetensors"
GRAPHS = (".onnx", ".xml", ".pt2")


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("-o", "--out", required=True, metavar="OUT", help="The new file.")
@click.option("--to", "dialect", metavar="DIALECT", help="Write for another library [default: for densekit].")
@click.option("--mean", metavar="A,B,C", help="Of each channel of images in 0..1; becomes part of the network.")
@click.option("--std", metavar="A,B,C", help="The same: what images less the mean are divided by.")
@click.option("--normalize", type=Choice(sorted(STATISTICS)), help="Mean and standard deviation by name.")
@click.option("--classes", metavar="A,B,C", help="Names of the classes of a segmentation network, in their order.")
@click.option(
    "--drop-class", type=click.IntRange(min=0), metavar="N", help="Leave class N out of an FC-DenseNet, such as void."
)
@click.option("--licence", metavar="TEXT", help="Of the data that the weights were trained on.")
@click.option("--data", metavar="TEXT", help="What they were trained on.")
@click.option(
    "--value-range", type=Choice(("1", "255")), help="Largest value in the images of a super-resolution network."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists; SOURCE itself never is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every name on stdout.")
def convert(
    source: str,
    out: str,
    dialect: str | None,
    mean: str | None,
    std: str | None,
    normalize: str | None,
    classes: str | None,
    drop_class: int | None,
    licence: str | None,
    data: str | None,
    value_range: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Makes a checkpoint of densekit from weights that others saved, or the other way round with --to.

    SOURCE is a file (.safetensors, .pth, .ckpt, .h5, .npz) or a name from densekit models. Names and shapes in it say
    what network it is; nothing in it is run, and every weight is accounted for. What became of them goes to stderr, the
    path of the new file to stdout.
    """
    if normalize and (mean or std):
        raise ConfigError("found --normalize and --mean or --std; give one of them")
    if (mean is None) != (std is None):
        raise ConfigError("--mean and --std belong together; give both or neither")
    if normalize:
        mean, std = STATISTICS[normalize]
    statistics = {key: _numbers(key, text) for key, text in (("mean", mean), ("std", std)) if text is not None}
    from densekit.pretrained import find_weights

    path, target = find_weights(source), Path(out)
    _check_paths(path, target, dialect, overwrite)

    from densekit.cli.batch import text_of, writing
    from densekit.dialects import Changes
    from densekit.dialects import convert as write

    changes = Changes(
        **statistics,
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
        drop_class=drop_class,
        licence=licence,
        data=data,
        value_range=None if value_range is None else float(value_range),
    )
    with writing(target):
        card, report = write(path, target, to=dialect, changes=changes)
    notes = [*report.notes, *_hints(card, report.dialect, dialect)]
    if as_json:
        record = _record(text_of(target), dialect, card, report, notes)
        click.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))
        return
    click.echo(str(report), err=True)
    for line in [*notes, *report.lines()]:
        click.echo(f"  {line}", err=True)
    click.echo(os.fsencode(target))


def _check_paths(source: Path, target: Path, dialect: str | None, overwrite: bool) -> None:
    """Passes a source that holds weights, and a target that can be written.

    Raises:
        ConfigError: it is a graph without them, or the target's name is wrong or taken.
    """
    if source.suffix in GRAPHS:
        raise ConfigError(f"{printable(source)}: a graph that was exported, not weights; convert what it came from")
    out = f"-o {printable(target)}"
    if dialect is not None:
        from densekit.dialects import dialect_names

        known = dialect_names(written=True)
        if dialect not in known:
            raise ConfigError(f"--to {dialect}: no such dialect{suggest(dialect, known)} ({', '.join(known)})")
    elif target.suffix != OWN_SUFFIX:
        raise ConfigError(f"{out}: expected a name that ends with {OWN_SUFFIX}, or --to DIALECT")
    if not target.parent.is_dir():
        raise ConfigError(f"{out}: {printable(target.parent)} is no folder; make it first")
    if os.path.realpath(source) == os.path.realpath(target):
        raise ConfigError(f"{out} is the file that is read; choose another name")
    if os.path.lexists(target) and not overwrite:
        raise ConfigError(f"{out} already exists; add --overwrite or choose another name")


def _numbers(key: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--{key} {printable(text)}: expected numbers such as 0.485,0.456,0.406") from error


def _hints(card: Card, found: str, written: str | None) -> list[str]:
    """Returns what a reader should know of the images that the new file's network takes."""
    mean, std = card.arguments.get("mean"), card.arguments.get("std")
    if written is not None and mean is not None:
        return [f"networks of {written} do not normalise: give them images in 0..1 less {mean}, divided by {std}"]
    if written is None and mean is None and card.task == "encoder" and found != "densekit":
        return ["takes images in 0..1 as they are; weights of ImageNet expect --normalize imagenet"]
    return []


def _record(out: str, dialect: str | None, card: Card, report: LoadReport, notes: list[str]) -> dict[str, Any]:
    return {
        "out": out,
        "to": dialect or "densekit",
        "source": report.source,
        "dialect": report.dialect,
        "task": card.task,
        "model": card.model,
        "arguments": card.arguments,
        "renamed": report.renamed,
        "ignored": report.ignored,
        "filled": report.filled,
        "notes": notes,
    }

"""`densekit encoder reuse`, `gradients` and `compare`: what the articles claim, measured on networks at hand."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from densekit import __version__
from densekit.cli import options
from densekit.cli.candidates import complete_encoders, complete_models, complete_names
from densekit.cli.outputs import columns, count, giga, json_line, mebibytes, new_file
from densekit.cli.process import spoken, tune_allocator
from densekit.errors import ConfigError
from densekit.files import atomic_write, printable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from densekit.encoders.comparison import Comparison

PICTURES, SIDE = 4, 64  # of noise, where no images are given
overwrite_option: options.Decorator = click.option(
    "--overwrite", is_flag=True, help="Replace OUT if it exists; without it that is refused."
)


@click.command()
@click.option(
    "-m",
    "--model",
    required=True,
    metavar="MODEL",
    shell_complete=complete_models,
    help="A trained model by name or file.",
)
@click.option("-o", "--out", metavar="OUT.svg", help="The picture.")
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each dense block on stdout.")
def reuse(model: str, out: str | None, overwrite: bool, as_json: bool) -> None:
    """Draws which earlier features the layers of dense blocks read: figure 5 of the DenseNet paper.

    A cell is the mean absolute weight from a source, the row, to a layer that reads it, the column; its shade is
    relative to the largest of the column. Norms between the two are not counted, as in the paper. Networks for
    super-resolution and segmentation have dense blocks, too.
    """
    if out is None and not as_json:
        raise ConfigError("encoder reuse needs -o OUT.svg, or --json")
    target = new_file(out, (".svg",), overwrite=overwrite) if out else None

    from densekit.encoders import feature_reuse, reuse_picture
    from densekit.predict.inputs import argument_of
    from densekit.pretrained import open_model

    with spoken():
        net, card = open_model(model)
    blocks = feature_reuse(net, in_channels=int(argument_of(net, card, "in_channels")))
    if as_json:
        for block in blocks:
            click.echo(json_line({"kind": "block", **dataclasses.asdict(block)}))
    if target:
        _write(target, reuse_picture(blocks, f"{printable(model)}: feature reuse"), quiet=as_json)


@click.command()
@click.option(
    "-m", "--model", required=True, metavar="MODEL", shell_complete=complete_names,
    help="A trained model by name or file, an architecture, or timm:NAME.",
)  # fmt: skip
@click.option(
    "--beside", multiple=True, metavar="MODEL", help="Another to compare with, such as timm:vgg16; at most two."
)
@click.option("--images", metavar="DIR", help="Pictures to go forward with [default: noise].")
@click.option("--size", type=options.PictureSize(), help=f"Of the pictures [default: {SIDE}].")
@click.option("--seed", default=0, show_default=True, help="Of random weights, noise, and the loss.")
@click.option("-o", "--out", metavar="OUT.svg", help="The picture.")
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each network on stdout.")
def gradients(
    model: str,
    beside: tuple[str, ...],
    images: str | None,
    size: tuple[int, int] | None,
    seed: int,
    out: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draws how strongly a loss reaches each layer: the norms of the gradients at its weights.

    The loss is a random direction of the output, drawn from the seed, so it asks for no labels. Architectures and
    timm:NAME have random weights. To compare with, timm:vgg16 is a plain network and timm:resnet50 one with residuals.
    The figure on stderr is the median norm of the first quarter of the layers by that of the last.
    """
    if out is None and not as_json:
        raise ConfigError("encoder gradients needs -o OUT.svg, or --json")
    if len(beside) > 2:
        raise ConfigError(f"found {len(beside)} of --beside; give at most two")
    target = new_file(out, (".svg",), overwrite=overwrite) if out else None
    tune_allocator()

    from densekit.encoders import early_share, gradient_norms, gradient_picture

    curves = []
    for name in (model, *beside):
        net, channels = _network(name, seed)
        norms = gradient_norms(net, _batch(images, size or (SIDE, SIDE), channels, seed), seed=seed)
        curves.append((name, norms))
        silent = sum(layer.norm == 0 for layer in norms)
        early = early_share(norms)
        note = f", {silent} without any" if silent else ""
        click.echo(f"{printable(name)}: {len(norms)} layers{note}; first quarter / last quarter {early:.3g}", err=True)
        if as_json:
            layers = [dataclasses.asdict(layer) for layer in norms]
            record = {"kind": "gradients", "model": printable(name), "early_share": early, "layers": layers}
            click.echo(json_line(record))
    if target:
        what = printable(images) if images else f"noise of seed {seed}"
        _write(target, gradient_picture(curves, f"Gradients by depth, {what}"), quiet=as_json)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="ENCODER...", shell_complete=complete_encoders)
@click.option(
    "--data", multiple=True, required=True, metavar="DIR", help="Images and masks, as for seg init; repeatable."
)
@click.option("--val", multiple=True, metavar="DIR", help="Held-out data [default: a fifth of DATA].")
@click.option("--steps", type=click.IntRange(min=2), default=100, show_default=True, help="Of training, for each.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), metavar="M", help="End training after M minutes."
)
@click.option("--batch-size", type=click.IntRange(min=2), default=8, show_default=True, help="Crops in a step.")
@click.option("--crop-size", type=click.IntRange(min=1), default=128, show_default=True, help="Their side in pixels.")
@click.option("--held-out", type=click.IntRange(min=1), default=64, show_default=True, help="Pictures scored, at most.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), default=1e-3, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights and crops.")
@options.device
@click.option("-o", "--out", metavar="OUT", help="Also write OUT.md, OUT.json, or the picture OUT.svg.")
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each encoder on stdout.")
@click.pass_context
def compare(
    context: click.Context,
    /,
    names: tuple[str, ...],
    data: tuple[str, ...],
    val: tuple[str, ...],
    device: str,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Compares encoders on one small segmentation: what they cost, and what they learn in equal steps.

    ENCODER is a name of densekit encoder list, or timm:NAME. All start from random weights and train in turn, on the
    same crops, under the same small decoder: a 1x1 convolution on each tap, and a sum. Times are ratios to the first
    one's; kept are the activations of a step, in brackets with the memory policy min. A few steps tell how fast
    something is learnt, not how good it gets.
    """
    target = new_file(out, (".md", ".json", ".svg"), overwrite=overwrite) if out else None
    tune_allocator()

    from densekit.cli.evaluate import command_of
    from densekit.encoders.comparison import Settings
    from densekit.encoders.comparison import compare as run
    from densekit.predict.device import choose_device

    settings, where = Settings(**given), choose_device(device)

    def follow(step: int, losses: dict[str, float]) -> None:
        if step % max(1, settings.steps // 10) == 0:
            told = "  ".join(f"{printable(name)} {loss:.3f}" for name, loss in losses.items())
            click.echo(f"step {step} of {settings.steps}: loss {told}", err=True)

    result = run(names, data, val=val, settings=settings, device=where, follow=follow)
    conditions = {"command": command_of(context), "densekit": __version__, "device": str(where), **_machine()}
    records = [{"kind": "encoder", **dataclasses.asdict(standing)} for standing in result.standings]
    if as_json:
        for record in records:
            click.echo(json_line(record))
    else:
        click.echo(columns(_table(result)))
    about = (
        f"{result.steps} steps of {settings.batch_size} crops of {settings.crop_size} from {result.train_pictures} "
        f"pictures; scored on {result.held_out_pictures} others"
    )
    click.echo(about, err=True)
    if target and target.suffix.lower() == ".json":
        whole = {**dataclasses.asdict(result), "settings": dataclasses.asdict(settings), "conditions": conditions}
        _write(target, json_line(whole) + "\n", quiet=True)
    elif target and target.suffix.lower() == ".svg":
        from densekit.encoders.standings import comparison_picture

        _write(target, comparison_picture(result, about), quiet=True)
    elif target:
        _write(target, _markdown(result, about, conditions), quiet=True)


def _network(name: str, seed: int) -> tuple[nn.Module, int]:
    """Returns a network of any kind, and the channels that it takes."""
    from densekit.encoders import PEER, peer_classifier, seeded
    from densekit.models import MODELS, create_model
    from densekit.predict.inputs import argument_of
    from densekit.pretrained import open_model

    if name.startswith(PEER):
        with seeded(seed):
            return peer_classifier(name.removeprefix(PEER)), 3
    if name in MODELS:
        from densekit.cards import Card

        with seeded(seed):
            net = create_model(name)
        return net, int(argument_of(net, Card(MODELS[name].task, name, {}), "in_channels"))
    with spoken():
        net, card = open_model(name)
    return net, int(argument_of(net, card, "in_channels"))


def _batch(images: str | None, size: tuple[int, int], channels: int, seed: int) -> Tensor:
    """Returns pictures (B, channels, H, W) in 0..1: those of a folder, the first few, or noise."""
    import torch

    if images is None:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(PICTURES, channels, *size, generator=generator)
    from densekit.datasets.pictures import list_pictures, read_rgb
    from densekit.predict.inputs import luma, to_unit
    from densekit.resize import imresize

    paths = list_pictures([images])[:PICTURES]
    if len(paths) < 2:
        raise ConfigError(f"--images {printable(images)}: one picture; norms need two or more")
    x = torch.cat([to_unit(imresize(read_rgb(path), None, size=size))[0] for path in paths])
    return x if channels == 3 else luma(x)


def _table(result: Comparison) -> list[tuple[str, ...]]:
    score = "IoU" if result.metric == "iou" else "mIoU"
    rows: list[tuple[str, ...]] = [("encoder", "parameters", "MACs", "kept (min)", "step time", "loss", score)]
    for standing in result.standings:
        kept = f"{mebibytes(standing.kept_bytes)} ({mebibytes(standing.least_bytes)})"
        if standing.kept_bytes == standing.least_bytes:
            kept = mebibytes(standing.kept_bytes)
        rows.append(
            (
                printable(standing.name),
                count(standing.parameters),
                giga(standing.macs),
                kept,
                f"{standing.step_ratio:.2f}",
                f"{standing.loss:.3f}",
                f"{standing.score:.3f}",
            )
        )
    return rows


def _markdown(result: Comparison, about: str, conditions: dict[str, str]) -> str:
    from densekit.report.markdown import escape

    head, *rows = [(escape(name), *figures) for name, *figures in _table(result)]
    lines = ["# Encoders compared", "", f"{about}.", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["--:"] * (len(head) - 1)], *rows)]
    return "\n".join([*lines, "", *(f"- {key}: {escape(value)}" for key, value in conditions.items())]) + "\n"


def _machine() -> dict[str, str]:
    import torch

    return {"torch": torch.__version__, "threads": str(torch.get_num_threads())}


def _write(target: Path, text: str, *, quiet: bool) -> None:
    from densekit.cli.batch import writing

    with writing(target):
        atomic_write(target, text.encode())
    if quiet:
        click.echo(f"report: {printable(target)}", err=True)
    else:
        click.echo(os.fsencode(target))

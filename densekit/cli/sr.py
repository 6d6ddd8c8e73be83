"""`densekit sr`: super-resolution."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from densekit.cli.check import sr_check
from densekit.cli.convert import convert
from densekit.cli.evaluate import Lines, check_reports, eval_options, load_for, named
from densekit.cli.export import sr_export
from densekit.cli.init import sr_init
from densekit.cli.options import predict_options
from densekit.cli.process import tune_allocator
from densekit.cli.train import run_training, train_options
from densekit.errors import ConfigError

if TYPE_CHECKING:
    from densekit.cli.batch import Done, OnTile
    from densekit.cli.plan import Job
    from densekit.predict.tiles import Tile

DEFAULT_MODEL = "rdn-tiny-x4"


@click.group()
def sr() -> None:
    """Super-resolution: larger pictures; predict, train, eval and check."""


@sr.command()
@predict_options(
    model_help=f"Name of a trained model (see densekit models) or a .safetensors file [default: {DEFAULT_MODEL}].",
    out_help="Folder for the results, or the result itself for one input [default: beside each input].",
)
@click.option("--self-ensemble", is_flag=True, help="Mean over 8 flips and turns: 8 times the work, a little better.")
@click.option("--compare", is_flag=True, help="Also write NAME_compare.png: before, bicubic and after side by side.")
@click.pass_obj
def predict(
    debug: bool,
    inputs: tuple[str, ...],
    out: str | None,
    model: str | None,
    tile: Tile,
    device: str,
    precision: str,
    overwrite: bool,
    first_frame: bool,
    max_pixels: int | None,
    as_json: bool,
    self_ensemble: bool,
    compare: bool,
) -> int:
    """Enlarges pictures: files, folders with all below them, and quoted patterns like 'photos/*.jpg'.

    photo.jpg becomes photo_x4.jpg; a format that cannot hold the result becomes .png or .tif. Below -o the tree of a
    folder is kept. Every output is planned, and clashes are refused, before the first picture is computed; one that
    cannot be read does not stop the others. A folder is taken as it is, results of an earlier run among its pictures
    included: write them elsewhere with -o.
    """
    from densekit.cli.plan import Ending, find_inputs, plan
    from densekit.cli.predict import check_fits, describe_measures, find_model, measures, read_picture

    files = find_inputs(inputs)
    weights = find_model(model or DEFAULT_MODEL, "sr")
    tune_allocator()

    from densekit.cli.batch import Done, run_batch, text_of, writing
    from densekit.image import Picture, write_image
    from densekit.predict.compare import compare as side_by_side
    from densekit.predict.tiles import check_tile
    from densekit.tiff import open_tiff

    check_tile(tile)
    upscaler = weights.load(device, precision)
    scale = upscaler.scale
    endings = [Ending(f"_x{scale}"), Ending("_compare", ".png")][: 1 + compare]
    planned = plan(files, out, endings, overwrite=overwrite)
    weights.announce(upscaler)

    def work(job: Job, on_tile: OnTile) -> Done:
        began = time.monotonic()
        picture = read_picture(job.source, max_pixels, first_frame)
        outputs = [planned.settle(job, picture), *job.outputs[1:]]
        side = upscaler.choose_tile(picture.height, picture.width, tile)
        options: dict[str, Any] = {"tile": side or "off", "self_ensemble": self_ensemble, "on_tile": on_tile}
        if check_fits(picture, scale, outputs[0], compare=compare):
            with writing(*outputs), open_tiff(outputs[0], picture, scale) as place:
                notes = upscaler.upscale_into(place, picture, **options)
        else:
            result = upscaler.upscale_picture(picture, **options)
            compared = Picture(side_by_side(picture, result, scale)) if compare else None
            with writing(*outputs):
                notes = (*result.warnings, *write_image(outputs[0], result))
                if compared:
                    write_image(outputs[1], compared)
        record = {
            "scale": scale,
            "compare": text_of(outputs[1]) if compare else None,
            **weights.record(upscaler),
            **measures(picture, scale, side, upscaler.context, began),
        }
        return Done(outputs, describe_measures(record), record, list(notes))

    return run_batch(planned.jobs, work, as_json=as_json, debug=debug)


@sr.command()
@train_options
def train(name: str, overrides: tuple[str, ...], run_dir: str | None, **options: Any) -> None:
    """Trains a super-resolution network.

    CONFIG is a YAML file or the name of a shipped config, such as sr/rdn_tiny_x2; KEY=VALUE changes one key of it, such
    as train.seed=1. Prints the path of the weights of the last step; the best ones by the validation figure are in
    best.safetensors beside it.
    """
    run_training("sr", name, overrides, run_dir, **options)


@sr.command("eval")
@eval_options
@click.option("--hr", required=True, metavar="DIR|SET", help="Originals: a folder, or a test set such as Set5 by name.")
@click.option("--lr", metavar="DIR", help="Low-resolution pictures, paired by name [default: made from the originals].")
@click.option("--sr", "results", metavar="DIR", help="Results that are there already, paired by name, instead of -m.")
@click.option("--scale", type=click.IntRange(min=1), metavar="N", help="Of the results in --sr.")
@click.option("--self-ensemble", is_flag=True, help="Mean over 8 flips and turns.")
@click.option("--metrics", default="psnr,ssim", show_default=True, metavar="NAME,...", help="What to measure.")
@click.option("--explain", is_flag=True, help="Also show the figures by every other protocol.")
@click.pass_context
def evaluate(
    context: click.Context,
    model: str | None,
    protocol: str | None,
    tile: Tile,
    device: str,
    precision: str,
    reports: tuple[str, ...],
    as_json: bool,
    hr: str,
    lr: str | None,
    results: str | None,
    scale: int | None,
    self_ensemble: bool,
    metrics: str,
    explain: bool,
) -> int:
    """Measures a network, or a folder of results, against originals.

    Originals are cropped to a multiple of the scale and reduced as the benchmarks are, unless --lr has the reduced
    ones. Prints one line for the set, with its protocol; the pictures' lines go to stderr. A picture that cannot be
    scored is an error line, and the mean says of how many it is.
    """
    if (model is None) == (results is None):
        raise ConfigError("sr eval needs either -m MODEL or --sr DIR, a folder of results")
    check_reports(reports)
    tune_allocator()

    from densekit.evaluate import evaluate_sr
    from densekit.evaluate.sets import find_set

    find_set(hr)  # before the weights are loaded
    upscaler, about = load_for(model, "sr", device, precision)
    keys = [name.strip() for name in metrics.split(",") if name.strip()]
    lines = Lines(as_json, {**about, "self_ensemble": self_ensemble})
    with lines.shown():
        evaluation = evaluate_sr(
            upscaler,
            hr,
            lr=lr,
            sr=results,
            scale=scale,
            protocol=protocol or "rdn-y",
            metrics=keys,
            explain=explain,
            tile=tile,
            self_ensemble=self_ensemble,
            conditions=named(about, context),
            follow=lines,
        )
    told = evaluation.conditions
    if explain and not as_json:
        lines.explain(evaluation)
    notes = [f"protocol {told['protocol']}"]
    notes += [f"LR {told['resize']}"] if "resize" in told else []
    notes += ["self-ensemble"] if "self_ensemble" in told else []
    notes += [told["grey"]] if "grey" in told else []
    return lines.finish(evaluation, f"{told['set']} x{told['scale']}", keys, notes, reports)


sr.add_command(sr_check)
sr.add_command(sr_export)
sr.add_command(convert)
sr.add_command(sr_init)

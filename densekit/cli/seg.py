"""`densekit seg`: segmentation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from densekit.cli.check import seg_check
from densekit.cli.convert import convert
from densekit.cli.evaluate import Lines, check_reports, eval_options, load_for, named
from densekit.cli.export import seg_export
from densekit.cli.init import seg_init
from densekit.cli.options import Choice, predict_options
from densekit.cli.process import tune_allocator
from densekit.cli.train import run_training, train_options
from densekit.errors import ConfigError

if TYPE_CHECKING:
    from densekit.cli.batch import Done, OnTile
    from densekit.cli.plan import Job
    from densekit.predict.tiles import Tile


@click.group()
def seg() -> None:
    """Segmentation: the class of every pixel; predict, train, eval and check."""


@seg.command()
@predict_options(
    model_help="Name of a trained model (see densekit models) or a .safetensors file; required.",
    out_help="Folder for the results, or the mask itself (.png) for one input [default: beside each input].",
)
@click.option("--overlay", is_flag=True, help="Also write NAME_overlay.png: the classes in colour, with a legend.")
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
    overlay: bool,
) -> int:
    """Segments pictures: files, folders with all below them, and quoted patterns like 'street/*.jpg'.

    photo.jpg gives photo_mask.png, whose pixels are class numbers in the colours of the model's palette. Below -o the
    tree of a folder is kept. Every output is planned, and clashes are refused, before the first picture is computed;
    one that cannot be read does not stop the others. A folder is taken as it is, results of an earlier run among its
    pictures included: write them elsewhere with -o.
    """
    from densekit.cli.plan import Ending, find_inputs, plan
    from densekit.cli.predict import describe_measures, find_model, measures, read_picture

    files = find_inputs(inputs)
    weights = find_model(model, "seg")
    tune_allocator()

    import numpy as np

    from densekit.cli.batch import Done, caught_warnings, run_batch, text_of, writing
    from densekit.image import Picture, write_image, write_mask
    from densekit.predict.overlay import overlay as draw
    from densekit.predict.segment import OVERLAPS
    from densekit.predict.tiles import check_tile

    check_tile(tile)
    segmenter = weights.load(device, precision)
    segmenter.check_statistics()
    palette = np.array(segmenter.palette, np.uint8)
    endings = [Ending("_mask", ".png"), Ending("_overlay", ".png")][: 1 + overlay]
    planned = plan(files, out, endings, overwrite=overwrite)
    weights.announce(segmenter)

    def work(job: Job, on_tile: OnTile) -> Done:
        began = time.monotonic()
        picture = read_picture(job.source, max_pixels, first_frame)
        side = segmenter.choose_tile(picture.height, picture.width, tile)
        with caught_warnings() as warnings:
            ids = segmenter.segment_picture(picture, tile=side or "off", on_tile=on_tile)
        drawn = Picture(draw(picture.pixels, ids, segmenter.classes, segmenter.palette)) if overlay else None
        with writing(*job.outputs):
            write_mask(job.outputs[0], ids, palette)
            if drawn:
                write_image(job.outputs[1], drawn)
        record = {
            "num_classes": len(segmenter.classes),
            "overlay": text_of(job.outputs[1]) if overlay else None,
            **weights.record(segmenter),
            **measures(picture, 1, side, (side or 0) // OVERLAPS, began),
        }
        return Done(list(job.outputs), describe_measures(record), record, [*picture.warnings, *warnings])

    return run_batch(planned.jobs, work, as_json=as_json, debug=debug)


@seg.command()
@train_options
def train(name: str, overrides: tuple[str, ...], run_dir: str | None, **options: Any) -> None:
    """Trains a segmentation network.

    CONFIG is a YAML file or the name of a shipped config, such as seg/fc_densenet_camvid; KEY=VALUE changes one key of
    it, such as train.seed=1. Prints the path of the weights of the last step; the best ones by the validation figure
    are in best.safetensors beside it.
    """
    run_training("seg", name, overrides, run_dir, **options)


@seg.command("eval")
@eval_options
@click.option("--images", metavar="DIR", help="Pictures for the model.")
@click.option("--masks", required=True, metavar="DIR", help="Masks of class numbers, paired by name.")
@click.option("--predictions", metavar="DIR", help="Masks that are there already, paired by name, instead of -m.")
@click.option("--num-classes", type=click.IntRange(2, 256), metavar="N", help="Of the masks in --predictions.")
@click.option(
    "--ignore-index", type=click.IntRange(min=0), metavar="N",
    help="Label whose pixels count nowhere [default: the protocol's, or 255].",
)  # fmt: skip
@click.option("--calibration", is_flag=True, help="Also compare probabilities with how often the class is right.")
@click.option(
    "--held-out", nargs=2, metavar="IMAGES MASKS", help="Fit a temperature on these, and calibrate with it as well."
)
@click.option("--boundary", type=click.IntRange(min=1), metavar="PX", help="Also score outlines, to PX pixels.")
@click.option(
    "--bn", type=Choice(("running", "batch")), default="running", show_default=True,
    help="Statistics of batch norms: the model's own, or those of each batch.",
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="For --bn batch.")
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
    images: str | None,
    masks: str,
    predictions: str | None,
    num_classes: int | None,
    ignore_index: int | None,
    calibration: bool,
    held_out: tuple[str, str] | None,
    boundary: int | None,
    bn: str,
    batch_size: int,
) -> int:
    """Measures a network, or a folder of predicted masks, against masks.

    Prints one line for the set, with its protocol and the statistics that batch norms used; the pictures' lines go to
    stderr. A picture that cannot be scored is an error line, and the figures say of how many they are.
    """
    if (model is None) == (predictions is None):
        raise ConfigError("seg eval needs either -m MODEL or --predictions DIR, a folder of masks")
    if model is not None and images is None:
        raise ConfigError("seg eval -m needs --images DIR, the pictures that belong to the masks")
    check_reports(reports)
    tune_allocator()

    from densekit.evaluate import evaluate_seg

    segmenter, about = load_for(model, "seg", device, precision)
    if bn == "batch":
        click.echo("warning: --bn batch: a result depends on the other pictures of its batch", err=True)
    lines = Lines(as_json, {**about, "batch_size": batch_size})
    with lines.shown():
        evaluation = evaluate_seg(
            segmenter,
            images,
            masks,
            predictions=predictions,
            protocol=protocol,
            num_classes=num_classes,
            ignore_index=ignore_index,
            calibration=calibration,
            held_out=held_out,
            boundary=boundary,
            bn=bn if segmenter else None,
            batch_size=batch_size,
            tile=tile,
            conditions=named(about, context),
            follow=lines,
        )
    told = evaluation.conditions
    if not as_json:
        lines.classes(evaluation)
    notes = [f"protocol {told['protocol']}"]
    notes += [f"bn {told['bn_mode']}"] if "bn_mode" in told else []
    notes += [f"batches of {batch_size}"] if told.get("bn_mode") == "batch" else []
    notes += [f"windows of {told['tile']}"] if told.get("tile", "whole") != "whole" else []
    keys = (evaluation.metric, "accuracy", "boundary_miou", "boundary_f1", "ece", "tempered_ece")
    return lines.finish(evaluation, told["set"], keys, notes, reports)


seg.add_command(seg_check)
seg.add_command(seg_export)
seg.add_command(convert)
seg.add_command(seg_init)

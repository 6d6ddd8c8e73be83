"""`densekit seg`: segmentation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from densekit.cli.options import predict_options
from densekit.cli.process import tune_allocator
from densekit.cli.train import run_training, train_options

if TYPE_CHECKING:
    from densekit.cli.batch import Done, OnTile
    from densekit.cli.plan import Job
    from densekit.predict.tiles import Tile


@click.group()
def seg() -> None:
    """Segmentation: the class of every pixel; predict and train."""


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
    from densekit.predict import Segmenter, load
    from densekit.predict.overlay import overlay as draw
    from densekit.predict.segment import OVERLAPS
    from densekit.predict.tiles import check_tile

    check_tile(tile)
    segmenter = load(weights.path, device=device, precision=precision)
    assert isinstance(segmenter, Segmenter)
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
def train(name: str, overrides: tuple[str, ...], run_dir: str | None, resume: bool, device: str) -> None:
    """Trains a segmentation network.

    CONFIG is a YAML file or the name of a shipped config, such as seg/fc_densenet_camvid; KEY=VALUE changes one key of
    it, such as train.seed=1. Prints the path of the weights of the last step; the best ones by the validation figure
    are in best.safetensors beside it.
    """
    run_training("seg", name, overrides, run_dir, resume=resume, device=device)

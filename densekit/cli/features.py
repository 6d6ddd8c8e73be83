"""`densekit encoder features`: the features of pictures as arrays in a file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densekit import __version__
from densekit.cli import options
from densekit.cli.candidates import complete_models
from densekit.cli.options import Choice
from densekit.cli.process import spoken, tune_allocator
from densekit.errors import ConfigError
from densekit.files import printable

if TYPE_CHECKING:
    from densekit.cli.batch import Done, OnTile
    from densekit.cli.plan import Input, Job
    from densekit.encoders import Found
    from densekit.encoders.features import Extractor, Features

SUFFIXES = (".npz", ".safetensors")


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "-m",
    "--model",
    required=True,
    metavar="MODEL",
    shell_complete=complete_models,
    help="A trained model by name or file; or an encoder, with --random-weights.",
)
@click.option("-o", "--out", required=True, metavar="OUT", help="FILE.npz or FILE.safetensors for all, or a folder.")
@click.option("--tap", "taps", multiple=True, type=click.IntRange(min=0), help="Which map; repeatable [default: last].")
@click.option(
    "--pool",
    type=Choice(("avg", "max", "none")),
    default="avg",
    show_default=True,
    help="Over the pixels of a map: one number for each channel, or the map itself.",
)
@click.option("--size", type=options.PictureSize(), help="Resize pictures to this first, in pixels.")
@click.option("--random-weights", "seed", type=int, metavar="SEED", help="Use an encoder that nothing was learnt for.")
@options.device
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist; without it they are refused.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each picture on stdout.")
@click.pass_obj
def features(
    debug: bool,
    inputs: tuple[str, ...],
    model: str,
    out: str,
    taps: tuple[int, ...],
    pool: str,
    size: tuple[int, int] | None,
    seed: int | None,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Computes features of pictures: files, folders with all below them, and quoted patterns.

    A FILE has one array for each tap, named tap4 and so on, whose rows are the pictures, and JSON text with their
    names, in the array densekit of an .npz and the metadata of a .safetensors. In a folder each picture has its own
    .npz. A picture that cannot be read does not stop the others. Random weights are used only if that is asked for.
    """
    from densekit.cli.outputs import new_file
    from densekit.cli.plan import Job, find_inputs

    is_file = Path(out).suffix.lower() in SUFFIXES and not out.endswith("/")
    if is_file and pool == "none" and size is None:
        raise ConfigError("--pool none gives maps as large as their pictures; add --size, or give a folder as -o")
    files = find_inputs(inputs)
    target = new_file(out, SUFFIXES, overwrite=overwrite) if is_file else None
    jobs = [Job(given.path, (target,)) for given in files] if target else _planned(files, out, overwrite)
    tune_allocator()

    from densekit.cli.batch import Done, run_batch, text_of, writing
    from densekit.encoders import find_encoder
    from densekit.encoders.features import Extractor, stack, write_features
    from densekit.image import read_image
    from densekit.predict.device import choose_device

    with spoken():
        found = find_encoder(model, seed=seed)
    extractor = Extractor(found, taps=taps or None, pool=pool, size=size, device=choose_device(device))
    about: dict[str, Any] = {
        "densekit": __version__,
        "model": text_of(Path(model)),
        "random_weights": seed,
        "pool": pool,
    }
    about |= {"size": None if size is None else list(size), "taps": list(extractor.taps)}
    names = dict(zip((job.source for job in jobs), _names(files), strict=True))
    done: dict[Path, Features] = {}
    click.echo(_announcement(model, found, extractor, seed), err=True)

    def work(job: Job, on_tile: OnTile) -> Done:
        began = time.monotonic()
        picture = read_image(job.source)
        made = extractor(picture)
        if target:
            done[job.source] = made
        else:
            with writing(*job.outputs):
                write_features(job.outputs[0], made, {**about, "names": [names[job.source]]})
        shapes = {name: list(array.shape) for name, array in made.items()}
        line = "  ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        record = {**about, "row": len(done) - 1 if target else None, "features": shapes}
        record["seconds"] = round(time.monotonic() - began, 3)
        # The one file for all is named when it is there.
        return Done(list(job.outputs) if as_json or not target else [], line, record, list(picture.warnings))

    code = run_batch(jobs, work, as_json=as_json, debug=debug)
    if target and done:
        with writing(target):
            write_features(target, stack(list(done.values())), {**about, "names": [names[path] for path in done]})
        if not as_json:
            click.echo(os.fsencode(target))
    return code


def _planned(files: list[Input], out: str, overwrite: bool) -> list[Job]:
    from densekit.cli.plan import Ending, plan

    return plan(files, out, [Ending("", ".npz")], overwrite=overwrite).jobs


def _names(files: list[Input]) -> list[str]:
    """Returns the pictures' names: below the folder that named them, or in full where two would be the same."""
    from densekit.cli.batch import text_of

    places = [text_of(given.place) for given in files]
    return places if len(set(places)) == len(places) else [text_of(given.path) for given in files]


def _announcement(model: str, found: Found, extractor: Extractor, seed: int | None) -> str:
    origin = "trained" if seed is None else f"random weights, seed {seed}"
    taps = ", ".join(f"tap {tap}" for tap in extractor.taps)
    return f"densekit {__version__}  {printable(model)} ({found.name}, {origin})  {taps}  {extractor.device}"

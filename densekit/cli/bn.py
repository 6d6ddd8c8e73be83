"""`densekit bn`: the statistics of batch norms."""

from __future__ import annotations

import os
from pathlib import Path

import click

from densekit.cli import options
from densekit.cli.candidates import complete_models
from densekit.cli.process import spoken, tune_allocator
from densekit.errors import ConfigError
from densekit.files import printable


@click.group()
def bn() -> None:
    """Batch norms: the averages that a checkpoint predicts with."""


@bn.command()
@click.argument("checkpoint", metavar="CKPT", shell_complete=complete_models)
@click.option("--data", "folders", required=True, multiple=True, metavar="DIR", help="Training pictures; repeatable.")
@click.option("-o", "--out", required=True, metavar="OUT", help="The new checkpoint, .safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists; CKPT itself never is.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Pictures at once.")
@options.device
def recalibrate(
    checkpoint: str, folders: tuple[str, ...], out: str, overwrite: bool, batch_size: int, device: str
) -> None:
    """Averages batch-norm statistics anew over pictures and prints the path of the new checkpoint.

    CKPT is a name from densekit models, or a file of weights, those of others included. Every picture goes through
    once, dropout off, together with others, cut to the size that its batch has in common. The new card says bn_mode
    recalibrated and of how many pictures. Figures of the former statistics are dropped, so measure it anew with
    densekit seg eval.
    """
    from densekit.pretrained import find_weights, open_model

    source, target = find_weights(checkpoint), Path(out)
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise ConfigError(f"-o {printable(out)}: expected a .safetensors file in a folder that exists")
    if os.path.realpath(source) == os.path.realpath(target):
        raise ConfigError(f"-o {printable(out)} is the checkpoint that is read; choose another name")
    if os.path.lexists(target) and not overwrite:
        raise ConfigError(f"-o {printable(out)} already exists; add --overwrite or choose another name")
    tune_allocator()

    from densekit.checkpoint import save_model
    from densekit.cli.progress import Watch
    from densekit.datasets.pictures import list_pictures
    from densekit.evaluate import recalibrate
    from densekit.predict.device import choose_device

    where = choose_device(device)
    with spoken():
        net, card = open_model(source)
    paths = list_pictures(folders)
    with Watch(paths) as watch:
        result, card = recalibrate(net, card, paths, batch_size=batch_size, device=where, on_picture=watch.begin)
        save_model(target, result, card)
        watch.say(f"bn_mode recalibrated, {len(paths)} pictures")
        watch.result(target)

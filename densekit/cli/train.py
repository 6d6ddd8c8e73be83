"""Training from the command line, the same for both tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from densekit import __version__
from densekit.cli import options
from densekit.cli.process import tune_allocator
from densekit.errors import ConfigError, DensekitError, DeviceError
from densekit.files import printable


def train_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what both train commands take."""
    for option in (
        options.device,
        click.option("--resume", is_flag=True, help="Continue from the newest state of the run."),
        click.option("--run", "run_dir", metavar="DIR", help="Folder of the run [default: runs/NAME of the config]."),
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
        click.argument("name", metavar="CONFIG"),
    ):
        function = option(function)
    return function


def run_training(
    task: str, name: str, overrides: tuple[str, ...], run_dir: str | None, *, resume: bool, device: str
) -> None:
    """Trains a network of `task` and prints the path of its weights.

    Raises:
        ConfigError: the config is wrong or for another task, or the run's folder is taken.
        DataError: the data cannot be used, or the loss stopped being finite.
        DeviceError: no such device, or not enough memory.
        CheckpointError: no saved state is whole.
        Interrupted: SIGINT or SIGTERM, after saving.
    """
    from densekit.config import load_config

    config = load_config(name, overrides)
    if config.task != task:
        raise ConfigError(f"{printable(name)}: its task is {config.task}; use densekit {config.task} train")
    tune_allocator()

    import torch

    from densekit.predict.device import choose_device
    from densekit.tasks import create_task
    from densekit.tiling import OUT_OF_MEMORY
    from densekit.train import train

    kind = choose_device(device).type
    folder = Path(run_dir or Path("runs", Path(name).stem))
    threads = f", {config.train.threads or torch.get_num_threads()} threads" if kind == "cpu" else ""
    click.echo(
        f"densekit {__version__}  {config.model.name} ({task})  {kind}{threads}, {config.train.precision}  "
        f"{printable(folder)}",
        err=True,
    )
    try:
        figures = train(create_task(config), config, folder, resume=resume, device=kind)
    except DensekitError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        raise DeviceError(
            f"a batch of {config.train.batch_size} crops of {config.train.crop_size} pixels does not fit {kind} "
            "memory; lower train.batch_size or train.crop_size, and raise train.accumulate instead"
        ) from error
    for key, value in figures.items():
        click.echo(f"{key} {value:.4f}", err=True)
    click.echo(str(folder / "last.safetensors").encode(errors="surrogateescape"))

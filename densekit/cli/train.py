"""Training from the command line, the same for both tasks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densekit import __version__
from densekit.cli import options
from densekit.cli.candidates import complete_configs
from densekit.cli.process import spoken, tune_allocator
from densekit.errors import ConfigError, DataError, DensekitError, DeviceError, Interrupted
from densekit.files import printable

if TYPE_CHECKING:
    from densekit.config import Config


def train_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what both train commands take."""
    for option in (
        options.device,
        click.option("--print-config", is_flag=True, help="Print the config, and where each value is from; then end."),
        click.option("--dry-run", is_flag=True, help="Load the data, take two steps, say what a run costs; then end."),
        click.option("--resume", is_flag=True, help="Continue from the newest state of the run."),
        click.option("--run", "run_dir", metavar="DIR", help="Folder of the run [default: runs/NAME of the config]."),
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
        click.argument("name", metavar="CONFIG", shell_complete=complete_configs),
    ):
        function = option(function)
    return function


def run_training(
    task: str,
    name: str,
    overrides: tuple[str, ...],
    run_dir: str | None,
    *,
    resume: bool,
    dry_run: bool,
    print_config: bool,
    device: str,
) -> None:
    """Trains a network of `task` and prints the path of its weights; or rehearses that, and writes nothing.

    Raises:
        ConfigError: the config is wrong or for another task, a tracker is missing, or the run's folder is taken.
        DataError: the data cannot be used, or the loss stopped being finite.
        DeviceError: no such device, or not enough memory.
        CheckpointError: no saved state is whole.
        Interrupted: SIGINT or SIGTERM, after saving.
    """
    from densekit.config import load_config
    from densekit.origins import annotated_config

    config = load_config(name, overrides)
    if config.task != task:
        raise ConfigError(f"{printable(name)}: its task is {config.task}; use densekit {config.task} train")
    if print_config or dry_run:
        click.echo(annotated_config(name, overrides), nl=False)
    if print_config:
        return
    tune_allocator()

    import torch

    from densekit import ranks
    from densekit.predict.device import choose_device
    from densekit.tasks import create_task
    from densekit.tiling import OUT_OF_MEMORY
    from densekit.train import rehearse, train
    from densekit.train.trackers import check_trackers

    check_trackers(config.train.trackers)
    kind = choose_device(device).type
    folder = Path(run_dir or Path("runs", Path(name).stem))
    threads = f", {config.train.threads or torch.get_num_threads()} threads" if kind == "cpu" else ""
    click.echo(
        f"densekit {__version__}  {config.model.name} ({task})  {kind}{threads}, {config.train.precision}  "
        f"{printable(folder)}",
        err=True,
    )
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # torchrun started all ranks anew
    try:
        with ranks.joined(kind), nullcontext() if ranks.rank() else spoken():
            if dry_run:
                check_data(config)
                for line in rehearse(create_task(config), config, kind):
                    if ranks.rank() == 0:
                        click.echo(line, err=True)
                return
            resume = resume or any(ranks.gathered(restarted))  # a machine that came later counts no restart
            figures = train(create_task(config), config, folder, resume=resume, device=kind)
            is_first = ranks.rank() == 0
    except Interrupted:
        if ranks.find_place(os.environ) is None:  # else it takes torchrun's or SLURM's words before these
            words = [task, "train", name, *overrides, "--run", str(folder), "--device", device, "--resume"]
            click.echo(f"continue with: densekit {printable(shlex.join(words))}", err=True)
        raise
    except DensekitError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        raise DeviceError(
            f"a batch of {config.train.batch_size} crops of {config.train.crop_size} pixels does not fit {kind} "
            "memory; lower train.batch_size or train.crop_size, and raise train.accumulate instead"
        ) from error
    if not is_first:
        return
    report = folder / "report.html"
    if report.exists():
        click.echo(f"report: {printable(report)}", err=True)
    for key, value in figures.items():
        click.echo(f"{key} {value:.4f}", err=True)
    click.echo(str(folder / "last.safetensors").encode(errors="surrogateescape"))


def check_data(config: Config) -> None:
    """Prints every fault of the data that a config names.

    Raises:
        DataError: some of them are errors.
    """
    from densekit.datasets.checks import check_config
    from densekit.datasets.checks.text import text_lines

    result = check_config(config)
    for line in text_lines(result):
        click.echo(line, err=True)
    if result.errors:
        raise DataError(
            f"the data is faulty, {len(result.errors)} times; mend it (densekit {config.task} check tells all)"
        )

"""`densekit sr|seg check`: every fault of a data set in one pass, grouped by kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densekit.cli.process import tune_allocator
from densekit.errors import ConfigError
from densekit.files import printable

if TYPE_CHECKING:
    from densekit.config import Config
    from densekit.datasets.checks import CheckResult


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what both checks take."""
    for option in (
        click.option("--report", metavar="FILE.html", help="Also write a page with all faults and facts."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each fault, then the facts."),
        click.option("--crop-size", type=click.IntRange(min=1), metavar="N", help="Side of a training crop in pixels."),
        click.argument("data", nargs=-1, metavar="[CONFIG | DIR...]"),
    ):
        function = option(function)
    return function


@click.command("check")
@_shared
@click.option("--hr", multiple=True, metavar="DIR", help="High-resolution pictures.")
@click.option("--lr", multiple=True, metavar="DIR", help="Low-resolution pictures made from them; one for each --hr.")
@click.option("--val", multiple=True, metavar="DIR", help="Validation pictures.")
@click.option(
    "--scale", type=click.IntRange(1, 16), metavar="N", help="Between LR and HR [default: that of most pairs]."
)
def sr_check(
    data: tuple[str, ...],
    hr: tuple[str, ...],
    lr: tuple[str, ...],
    val: tuple[str, ...],
    scale: int | None,
    crop_size: int | None,
    as_json: bool,
    report: str | None,
) -> int:
    """Finds every fault of super-resolution data in one pass.

    Takes folders of high-resolution pictures, or a config, whose data.train and data.val are checked. With --lr each
    low-resolution picture is compared with its partner: scale, turn, shift, and which resize made it. Ends with 3 if
    there are errors, with 0 if there are none or warnings alone.
    """
    tune_allocator()
    config, folders = _split(data, "sr", report)
    from densekit.datasets.checks import check_sr

    train = [*(config.data.train if config else ()), *folders, *hr]
    if not train:
        raise ConfigError("no data to check; give a config, or a folder with --hr DIR")
    result = check_sr(
        train,
        lr=[*(config.data.lr if config else ()), *lr],
        val=[*(config.data.val if config else ()), *val],
        val_lr=config.data.val_lr if config and not val else (),
        val_share=config.data.val_share if config else 0.0,
        scale=scale or (config.model.kwargs["scale"] if config else None),
        crop_size=crop_size or (config.train.crop_size if config else None),
    )
    return _finish(result, "sr", as_json=as_json, report=report)


@click.command("check")
@_shared
@click.option("--images", multiple=True, metavar="DIR", help="Training images.")
@click.option("--masks", multiple=True, metavar="DIR", help="Their masks; one for each --images.")
@click.option("--val-images", multiple=True, metavar="DIR", help="Validation images.")
@click.option("--val-masks", multiple=True, metavar="DIR", help="Their masks; one for each --val-images.")
@click.option("--num-classes", type=click.IntRange(1, 255), metavar="N", help="Labels are 0..N-1; 1 is read as 2.")
@click.option("--classes", metavar="A,B,C", help="Names of the classes, which also say how many there are.")
@click.option("--ignore-index", type=click.IntRange(0, 255), metavar="N", help="Label that means void [default: 255].")
def seg_check(
    data: tuple[str, ...],
    images: tuple[str, ...],
    masks: tuple[str, ...],
    val_images: tuple[str, ...],
    val_masks: tuple[str, ...],
    num_classes: int | None,
    classes: str | None,
    ignore_index: int | None,
    crop_size: int | None,
    as_json: bool,
    report: str | None,
) -> int:
    """Finds every fault of segmentation data in one pass.

    Takes --images and --masks, folders that hold images/ and masks/, or a config, whose data section is checked. Also
    counts the classes, with the weights that would balance them. Ends with 3 if there are errors, with 0 if there are
    none or warnings alone.
    """
    tune_allocator()
    config, folders = _split(data, "seg", report)
    if config and (folders or images or val_images):
        raise ConfigError("found a config and folders; give one or the other")
    if folders and images:
        raise ConfigError("found --images and folders that hold images/ and masks/; give one or the other")
    names = [name.strip() for name in classes.split(",")] if classes else []
    if names and num_classes and len(names) != max(num_classes, 2):
        raise ConfigError(f"--classes has {len(names)} names, but --num-classes is {num_classes}; give one of them")
    from densekit.datasets.checks import check_config, check_seg

    if config:
        section = {
            key: value for key, value in (("classes", names), ("ignore_index", ignore_index)) if value not in ([], None)
        }
        config = config.model_copy(update={"data": config.data.model_copy(update=section)})
        result = check_config(config, num_classes=num_classes, crop_size=crop_size)
    elif not (images or folders):
        raise ConfigError("no data to check; give a config, or --images DIR --masks DIR")
    else:
        result = check_seg(
            images or folders,
            masks,
            val_images=val_images,
            val_masks=val_masks,
            num_classes=max(num_classes, 2) if num_classes else None,
            classes=names,
            ignore_index=255 if ignore_index is None else ignore_index,
            crop_size=crop_size,
        )
    return _finish(result, "seg", as_json=as_json, report=report)


def _split(data: tuple[str, ...], task: str, report: str | None) -> tuple[Config | None, list[str]]:
    """Returns the config among the arguments, or the folders that they are.

    Raises:
        ConfigError: both, two configs, a config of the other task, or one that is wrong; or no page can go to `report`.
    """
    if report:
        from densekit.report.check import check_page_path

        check_page_path(report)
    folders = [name for name in data if Path(name).is_dir()]
    if len(folders) == len(data):
        return None, folders
    if len(data) > 1:
        odd = next(name for name in data if name not in folders)
        raise ConfigError(f"{printable(odd)}: no such folder; give folders alone, or one config alone")
    from densekit.config import load_config

    config = load_config(data[0])
    if config.task != task:
        raise ConfigError(f"{printable(data[0])}: its task is {config.task}; use densekit {config.task} check")
    return config, []


def _finish(result: CheckResult, task: str, *, as_json: bool, report: str | None) -> int:
    """Prints what was found, writes the page, and returns the exit code."""
    from densekit.datasets.checks.text import json_lines, text_lines

    if report:
        from densekit.report.check import write_page

        write_page(report, result, task)
    for line in json_lines(result) if as_json else text_lines(result):
        click.echo(line)
    return 3 if result.errors else 0

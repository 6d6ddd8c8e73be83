"""`densekit sr|seg export`: networks as files for other runtimes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densekit.cli.outputs import json_line
from densekit.cli.process import tune_allocator
from densekit.errors import ConfigError
from densekit.files import printable

if TYPE_CHECKING:
    from densekit.export import Export


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what both exports take."""
    options = [
        click.option("-m", "--model", required=True, metavar="MODEL", help="Name of a trained model, or its file."),
        click.option("-o", "--out", required=True, metavar="OUT", help="FILE.onnx, FILE.xml (OpenVINO) or FILE.pt2."),
        click.option(
            "--pad/--no-pad", default=True, show_default=True,
            help="Take any size: continue the picture where the network needs it, and crop.",
        ),
        click.option("--uint8", is_flag=True, help="Take bytes (B, H, W, C), and give pictures in this way too."),
        click.option("--int8", is_flag=True, help="Compute in 8-bit integers, and say what that loses."),
        click.option("--calibrate", multiple=True, metavar="DIR", help="Pictures for --int8; half of them judge it."),
        click.option(
            "--verify", is_flag=False, flag_value="", metavar="[DIR]",
            help="Compare with PyTorch on larger images too, and on those in DIR, and measure the speed.",
        ),
        click.option("--opset", type=click.IntRange(18, 23), default=18, show_default=True, help="Of ONNX."),
        click.option("--overwrite", is_flag=True, help="Replace OUT if it exists."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.command("export")
@_shared
def sr_export(**options: Any) -> None:
    """Writes a network as a graph for ONNX Runtime, OpenVINO or torch.export.

    The graph takes pictures of any size and number, (B, C, H, W) in 0..1, and gives them enlarged; its file says so,
    and predict -m takes it where it is .onnx or .xml. Prints the path. Every runtime is compared with PyTorch first,
    with --verify thoroughly: nothing is written where one differs.
    """
    _export("sr", argmax=False, **options)


@click.command("export")
@_shared
@click.option("--argmax", is_flag=True, help="Give class numbers (B, H, W), uint8, in place of logits.")
def seg_export(**options: Any) -> None:
    """Writes a network as a graph for ONNX Runtime, OpenVINO or torch.export.

    The graph takes pictures of any size and number, (B, C, H, W) in 0..1, and gives logits; mean and std are inside it.
    Its file says so, and predict -m takes it where it is .onnx or .xml. Prints the path. Every runtime is compared with
    PyTorch first, with --verify thoroughly: nothing is written where one differs.
    """
    _export("seg", **options)


def _export(
    task: str,
    *,
    model: str,
    out: str,
    pad: bool,
    argmax: bool,
    uint8: bool,
    int8: bool,
    calibrate: tuple[str, ...],
    verify: str | None,
    opset: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    from densekit.cli.predict import find_model

    if int8 != bool(calibrate):
        missing = "--calibrate DIR, pictures like those it will get" if int8 else "--int8, which alone uses pictures"
        raise ConfigError(f"{'--int8' if int8 else '--calibrate'} needs {missing}")
    path = Path(out)
    _check_out(path, overwrite)
    weights = find_model(model, task)
    tune_allocator()

    from densekit.export import export_model
    from densekit.runtimes.net import ExportedNet

    trained = weights.load("cpu", "fp32")
    if isinstance(trained.net, ExportedNet):
        raise ConfigError(f"{printable(model)}: is exported already; give the checkpoint it was made from")
    if task == "seg":
        trained.check_statistics()
    weights.announce(trained)
    done = export_model(
        trained.net,
        trained.card,
        path,
        pad=pad,
        argmax=argmax,
        uint8=uint8,
        calibrate=calibrate,
        verify=None if verify is None else [verify] if verify else [],
        opset=opset,
    )
    for comparison in done.comparisons:
        click.echo(str(comparison), err=True)
    if done.loss:
        click.echo(str(done.loss), err=True)
    if not done.comparisons:
        click.echo(
            "compared with PyTorch on small images alone; --verify adds larger ones, pictures and speed", err=True
        )
    if as_json:
        about = {"model": str(weights.name), "model_sha256": weights.sha256, "task": task}
        click.echo(json_line({**_record(done), **about}))
    else:
        click.echo(os.fsencode(path))


def _check_out(path: Path, overwrite: bool) -> None:
    """Passes a file that can be written.

    Raises:
        ConfigError: another suffix, no such folder, or files that exist.
    """
    from densekit.runtimes.reading import KINDS

    if path.suffix.lower() not in KINDS or not path.parent.is_dir():
        raise ConfigError(f"-o {printable(path)}: expected a .onnx, .xml or .pt2 file in a folder that exists")
    for name in (path, path.with_suffix(".bin")) if path.suffix.lower() == ".xml" else (path,):
        if os.path.lexists(name) and not overwrite:
            raise ConfigError(f"-o {printable(name)} already exists; add --overwrite or choose another name")


def _record(done: Export) -> dict[str, Any]:
    """Returns what was written as JSON values."""
    return {
        "path": os.fsdecode(done.paths[0]),
        "files": [os.fsdecode(path) for path in done.paths],
        "graph": vars(done.graph),
        "verify": [dataclasses.asdict(comparison) for comparison in done.comparisons],
        "int8": dataclasses.asdict(done.loss) if done.loss else None,
    }

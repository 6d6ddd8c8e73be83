"""What `densekit sr eval` and `densekit seg eval` do alike: figures, each with the protocol it was measured by."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from densekit import __version__
from densekit.cli.candidates import complete_models
from densekit.cli.options import Choice, Decorator, TileSize, device
from densekit.cli.outputs import json_line
from densekit.cli.process import Terminated, terminable
from densekit.errors import DataError, Interrupted
from densekit.files import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from densekit.cli.progress import Watch
    from densekit.report import Evaluation, Row


def eval_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what both eval commands take."""
    options: list[Decorator] = [
        click.option(
            "-m", "--model", metavar="MODEL", shell_complete=complete_models,
            help="Name of a trained model, or a .safetensors file.",
        ),
        click.option("--protocol", metavar="NAME", help="What is compared, and how; an unknown name lists them."),
        click.option("--tile", type=TileSize(), default="auto", show_default=True, help="Side of a tile in pixels."),
        device,
        click.option(
            "--precision", type=Choice(("auto", "fp32", "bf16", "fp16")), default="auto", show_default=True,
            help="Number format of the network.",
        ),
        click.option("--report", "reports", multiple=True, metavar="FILE", help="Also write FILE.html, .md or .json."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object a picture, and one for the set."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


class Lines:
    """Prints an evaluation as it proceeds: one line or JSON object a picture, and one for the set.

    Args:
        as_json: objects on stdout instead of lines on stderr.
        about: what every object says beside its figures and their conditions.
    """

    def __init__(self, as_json: bool, about: Mapping[str, Any]) -> None:
        self._as_json, self._about = as_json, dict(about)
        self._watch: Watch | None = None
        self._width = self._count = self._done = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows a bar inside, on a terminal; a signal ends it with nothing half written.

        Raises:
            Interrupted: SIGINT or SIGTERM.
        """
        try:
            with terminable():
                yield
        except KeyboardInterrupt as error:
            signum = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            raise Interrupted(
                f"interrupted: {self._done} of {self._count} scored, so there is no figure for the set", signum
            ) from None
        finally:
            if self._watch:
                self._watch.__exit__(None, None, None)

    def start(self, paths: Sequence[Path], conditions: Mapping[str, str]) -> None:
        from densekit.cli.progress import Watch

        self._about = {**_values(conditions), **self._about}
        self._count, self._width = len(paths), min(40, max(len(printable(path.name)) for path in paths))
        self._watch = Watch(list(paths)).__enter__()

    def begin(self, path: Path) -> None:
        assert self._watch
        self._watch.begin(path)

    def tile(self, done: int, total: int) -> None:
        assert self._watch
        self._watch.tile(done, total)

    def row(self, row: Row, tile: str) -> None:
        assert self._watch
        self._done += 1
        if row.error:
            self._watch.say(f"error: {row.error}")
        elif not self._as_json:
            figures = "  ".join(shown(key, value) for key, value in row.figures.items())
            self._watch.say(f"{printable(row.name):{self._width}}  {figures}")
        if self._as_json:
            outcome = {"ok": not row.error, **({"error": row.error} if row.error else row.figures)}
            self._watch.result(
                json_line({"kind": "picture", "name": row.name, **outcome, **self._about, "tile": tile or None})
            )

    def explain(self, evaluation: Evaluation) -> None:
        """Prints a table of protocols on stderr."""
        for key, value in evaluation.summary.items():
            name, at, protocol = key.partition("@")
            if at and name == "psnr":
                other = shown("ssim", evaluation.summary[f"ssim@{protocol}"])
                click.echo(f"  {protocol:16}  {shown(name, value)}  {other}", err=True)

    def classes(self, evaluation: Evaluation) -> None:
        """Prints a table of classes on stderr."""
        names = [printable(name) for name in evaluation.classes]
        for index, name in enumerate(names):
            figures = (shown(key, values[index]) for key, values in evaluation.per_class.items())
            click.echo(f"  {name:{max(map(len, names))}}  {'  '.join(figures)}", err=True)

    def finish(
        self, evaluation: Evaluation, name: str, keys: Sequence[str], notes: Sequence[str], reports: Sequence[str]
    ) -> int:
        """Prints the figures of the set, those of `keys` for people, writes the reports and returns the exit code.

        Raises:
            DataError: no picture could be scored.
        """
        rows, told = evaluation.rows, evaluation.conditions
        bad = sum(bool(row.error) for row in rows)
        figures = {key: evaluation.summary[key] for key in keys if key in evaluation.summary}
        if self._as_json:
            late: dict[str, Any] = {
                key: told.get(key) for key in ("resize", "tile", "grey") if key in {*self._about, "tile"}
            }
            count = {"pictures": len(rows), "failed": bad, "complete": not bad}
            click.echo(
                json_line({"kind": "set", "name": told["set"], **_nested(evaluation), **self._about, **late, **count})
            )
        if "notes" in told:
            click.echo(f"warning: {printable(told['notes'])}", err=True)
        if bad == len(rows):
            raise DataError(f"none of {bad} pictures could be scored; see the lines above")
        if not self._as_json:
            texts = "  ".join(shown(key, value) for key, value in figures.items())
            click.echo(f"{printable(name)}  {texts}  {', '.join([*notes, told['pictures']])}")
        write_reports(reports, evaluation)
        return 1 if bad else 0


def command_of(context: click.Context) -> str:
    """Returns the command line that gives this context, options in our order."""
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if context.get_parameter_source(parameter.name or "") is not ParameterSource.COMMANDLINE:
            continue
        flag = [max(parameter.opts, key=len)] if isinstance(parameter, click.Option) else []
        if value is True:
            words += flag
        else:
            for item in value if isinstance(value, tuple) else [value]:
                words += [*flag, str(item)]
    return os.fsencode(shlex.join(words)).decode("utf-8", "backslashreplace")


def shown(key: str, value: float | None) -> str:
    """Returns a figure as people read it: "PSNR 31.45 dB"."""
    from densekit.report import wording

    return f"{wording.label(key)} {wording.show(key, value)} {wording.unit(key)}".rstrip()


def check_reports(reports: Sequence[str]) -> None:
    """Passes reports that can be written, before any work.

    Raises:
        ConfigError: another suffix, or no such folder.
    """
    from densekit.report import check_path

    for report in reports:
        check_path(report)


def write_reports(reports: Sequence[str], evaluation: Evaluation) -> None:
    """Writes the reports and says where.

    Raises:
        ConfigError: one cannot be written.
    """
    from densekit.report import write_report

    for report in reports:
        write_report(report, evaluation)
        click.echo(f"report: {printable(report)}", err=True)


def load_for(name: str | None, task: str, device: str, precision: str) -> tuple[Any, dict[str, Any]]:
    """Returns a model, and what every line of `--json` says about it; nulls where none is named."""
    about: dict[str, Any] = dict.fromkeys(("model", "model_sha256", "bn_mode", "device", "precision"))
    if name is None:
        return None, {**about, "densekit": __version__}
    from densekit.cli.predict import find_model
    from densekit.evaluate.common import bn_mode_of

    weights = find_model(name, task)
    model = weights.load(device, precision)
    weights.announce(model)
    return model, {**about, **weights.record(model), "bn_mode": bn_mode_of(model), "densekit": __version__}


def named(about: Mapping[str, Any], context: click.Context) -> dict[str, str]:
    """Returns conditions that only a command knows: the model's file and hash, and its own line."""
    texts = {key: str(about[key]) for key in ("model", "model_sha256") if about[key]}
    return {**texts, "command": command_of(context)}


def _values(conditions: Mapping[str, str]) -> dict[str, Any]:
    """Returns conditions as JSON values: whole numbers as such, empty ones as null."""
    return {key: int(text) if text.isdecimal() else text or None for key, text in conditions.items()}


def _nested(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the figures of a set for JSON: those by other protocols and of classes inside objects of their own."""
    record: dict[str, Any] = {}
    for key, value in evaluation.summary.items():
        name, at, protocol = key.partition("@")
        if at:
            record.setdefault("explain", {}).setdefault(protocol, {})[name] = value
        else:
            record[name] = value
    if evaluation.per_class:
        record["classes"] = list(evaluation.classes)
        record["per_class"] = evaluation.per_class
    return record

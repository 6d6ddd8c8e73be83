"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import click

from densekit.cli.candidates import complete_models
from densekit.errors import suggest

Size = Literal["auto", "off"] | int
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Choice(click.Choice[str]):
    """click's choice, whose refusal names the nearest allowed value."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return super().get_invalid_choice_message(value, ctx).rstrip(".") + suggest(str(value), self.choices)


class TileSize(click.ParamType[Size]):
    """`auto`, `off` or a number of pixels."""

    name = "auto|off|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        if value == "auto" or value == "off":
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is not auto, off or a number of pixels{suggest(value, ('auto', 'off'))}", param, ctx)


class PictureSize(click.ParamType[tuple[int, int]]):
    """`N` for a square, or `HxW`, in pixels."""

    name = "N|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        numbers = value.lower().split("x")
        if len(numbers) > 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
            self.fail(f"{value!r} is no size; expected N or HxW in pixels, such as 224 or 480x640", param, ctx)
        return int(numbers[0]), int(numbers[-1])


device: Decorator = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda|...", help="Where to run."
)


def predict_options(model_help: str, out_help: str) -> Decorator:
    """Returns a decorator that adds what both predict commands take."""
    options: list[Decorator] = [
        click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
        click.option("-o", "--out", metavar="OUT", help=out_help),
        click.option("-m", "--model", metavar="MODEL", help=model_help, shell_complete=complete_models),
        click.option("--tile", type=TileSize(), default="auto", show_default=True, help="Side of a tile in pixels."),
        device,
        click.option(
            "--precision", type=Choice(("auto", "fp32", "bf16", "fp16")), default="auto", show_default=True,
            help="Number format of the network.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace outputs that exist; without it they are refused."),
        click.option("--first-frame", is_flag=True, help="Take the first of several frames or pages, and accept GIF."),
        click.option(
            "--max-pixels", type=click.IntRange(min=1), metavar="N",
            help="Largest picture to decode, in pixels [default: 178956970].",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each input on stdout."),
    ]  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate

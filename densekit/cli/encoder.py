"""`densekit encoder`: feature extractors, looked at, used and compared."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from densekit.cli.analysis import compare, gradients, reuse
from densekit.cli.candidates import complete_encoders
from densekit.cli.convert import convert
from densekit.cli.features import features
from densekit.cli.options import PictureSize
from densekit.cli.outputs import columns, count, giga, json_line, mebibytes
from densekit.cli.process import spoken
from densekit.errors import ConfigError, suggest
from densekit.files import printable

if TYPE_CHECKING:
    from densekit.cards import Card
    from densekit.encoders import Description, Summary


class Indices(click.ParamType[tuple[int, ...]]):
    """Numbers of taps between commas."""

    name = "I,J,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        numbers = value.split(",")
        if not all(number.strip().isdecimal() for number in numbers):
            self.fail(f"{value!r} are no taps; expected numbers between commas, such as 1,2,3,4", param, ctx)
        return tuple(int(number) for number in numbers)


@click.group()
def encoder() -> None:
    """Encoders: list, info, features, reuse, gradients, compare and convert."""


@encoder.command("list")
@click.argument("pattern", default="*", shell_complete=complete_encoders)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each encoder on stdout.")
def list_encoders(pattern: str, as_json: bool) -> None:
    """Lists encoders: parameters, multiplications, channels and strides of their taps.

    PATTERN selects by name, as in 'densenet*'. Parameters and multiplications (MACs) are those without a classifier or
    decoder, the latter for pictures of 224x224, or 32x32 where the encoder is for CIFAR. Nothing is computed.
    """
    from densekit.models import MODELS

    known = sorted(name for name, entry in MODELS.items() if entry.encoder)
    names = fnmatch.filter(known, pattern)
    if not names:
        raise ConfigError(f"no encoder matches {printable(pattern)!r}{suggest(pattern, known)} ({', '.join(known)})")

    from densekit.encoders import summarise

    summaries = (summarise(name) for name in names)
    if as_json:
        for summary in summaries:
            click.echo(json_line({"kind": "encoder", **dataclasses.asdict(summary)}))
        return
    heads = ("encoder", "parameters", "MACs", "size", "channels", "strides")
    click.echo(columns([heads, *map(_row, summaries)]))


@encoder.command()
@click.argument("name", metavar="NAME|FILE", shell_complete=complete_encoders)
@click.option("--size", type=PictureSize(), help="Of the picture [default: 224, or 32 for CIFAR nets].")
@click.option("--in-channels", type=click.IntRange(min=1), help="Of the picture [default: 3].")
@click.option("--output-stride", type=click.IntRange(min=1), metavar="8|16|32", help="Largest stride [default: 32].")
@click.option("--out-indices", type=Indices(), help="The taps [default: all].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def info(
    name: str,
    size: tuple[int, int] | None,
    in_channels: int | None,
    output_stride: int | None,
    out_indices: tuple[int, ...] | None,
    as_json: bool,
) -> None:
    """Describes an encoder: its taps, its costs, and where its weights come from.

    NAME is one of densekit encoder list, or an encoder of timm as in timm:resnet50. FILE holds weights of any kind that
    densekit reads, or is the name of a trained model: its card is printed, and the encoder inside it. The radius is how
    many pixels a tap sees to each side. Memory is that of activations for one picture in float32, counted; for
    training, by memory policy.
    """
    from densekit.encoders import describe, is_encoder

    given = {"in_channels": in_channels, "output_stride": output_stride}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    card = None
    if is_encoder(name):
        described: Description | None = describe(name, size=size, out_indices=out_indices, **changes)
    else:
        card, described = _inside(name, size, out_indices, changes)
    if as_json:
        record = dataclasses.asdict(described) if described else {}
        about = {"card": dataclasses.asdict(card)} if card else {}
        click.echo(json_line({"kind": "encoder", **about, **record}))
        return
    if card:
        click.echo(columns(list(_card_rows(card))) + "\n")
    click.echo(_told(described) if described else "this network has no encoder (densekit encoder list names those)")


encoder.add_command(features)
encoder.add_command(reuse)
encoder.add_command(gradients)
encoder.add_command(compare)
encoder.add_command(convert)


def _inside(
    name: str, size: tuple[int, int] | None, out_indices: tuple[int, ...] | None, changes: dict[str, Any]
) -> tuple[Card, Description | None]:
    """Returns the card of trained weights, and the description of the encoder in their network if it has one."""
    from densekit.encoders import describe, encoder_in
    from densekit.pretrained import open_model

    with spoken():
        net, card = open_model(name)
    try:
        found = encoder_in(net, card)
    except ConfigError:
        return card, None
    described = describe(
        found.name,
        size=size,
        out_indices=out_indices or found.indices,
        **{"whole": None if changes else net, **found.arguments, **changes},
    )
    return card, described


def _row(summary: Summary) -> tuple[str, ...]:
    return (
        summary.name,
        count(summary.parameters),
        giga(summary.macs),
        _size(summary.shape),
        " ".join(map(str, summary.channels)),
        " ".join(map(str, summary.reductions)),
    )


def _told(described: Description) -> str:
    """Returns a description for people."""
    rows = [("tap", "module", "channels", "size", "stride", "radius")]
    for tap in described.taps:
        radius = "-" if tap.radius is None else str(tap.radius)
        size = _size(tap.shape)
        rows.append((str(tap.index), tap.module or "-", str(tap.shape[0]), size, str(tap.reduction), radius))
    facts = [("encoder", described.name), ("parameters", count(described.parameters))]
    if described.network_parameters is not None and described.network_macs is not None:
        whole = f"with classifier or decoder {count(described.network_parameters)}"
        facts[-1] = ("parameters", f"{count(described.parameters)}, {whole}")
        facts.append(("MACs", f"{giga(described.macs)}, with classifier or decoder {giga(described.network_macs)}"))
    else:
        facts.append(("MACs", giga(described.macs)))
    training = ", ".join(f"{policy} {mebibytes(size)}" for policy, size in described.training_bytes.items())
    facts += [
        (
            "picture",
            f"{_size(described.shape)}, {described.shape[1]} channels; sides multiples of {described.multiple_of}",
        ),
        ("memory", f"{mebibytes(described.forward_bytes)} of activations at once in prediction"),
        ("training", f"{training} kept for the backward pass"),
    ]
    return f"{columns(facts)}\n\n{columns(rows)}"


def _card_rows(card: Card) -> Iterator[tuple[str, str]]:
    """Yields what a card says, what is empty left out."""
    for key, value in dataclasses.asdict(card).items():
        if value not in ("", 0, (), {}):
            shown = value if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False)
            yield key, printable(shown)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]}x{shape[-1]}"

"""`densekit doctor`: what is wrong with an installation, and what to do about it, to read or to put into an issue."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from densekit.cli.findings import FAIL, STATES, WARN, Finding
from densekit.cli.outputs import json_line
from densekit.cli.process import describe
from densekit.files import printable

Check = Callable[[], Iterable[Finding]]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each check on stdout.")
def doctor(as_json: bool) -> int:
    """Checks the installation, the machine and the embedded models; needs no network.

    Each line is ok, warn or fail, with the next step where there is one. The exit code is 1 if something failed. The
    lines name no user and no home folder, so they can go into an issue as they are.
    """
    counts = dict.fromkeys(STATES, 0)
    width = 12
    for finding in _all_findings():
        counts[finding.state] += 1
        if as_json:
            click.echo(json_line(dataclasses.asdict(finding)))
            continue
        click.echo(f"{finding.state:4}  {finding.check:{width}}  {finding.found}")
        if finding.next:
            click.echo(f"      {'':{width}}  next: {finding.next}")
    click.echo(", ".join(f"{number} {state}" for state, number in counts.items()), err=True)
    return 1 if counts[FAIL] else 0


def _all_findings() -> Iterator[Finding]:
    """Yields what every check finds, as soon as it is known; those that need torch come last, if it is there."""
    from densekit.cli import installation, machine, selftest

    first: list[tuple[str, Check]] = [
        ("versions", installation.versions),
        ("requirements", installation.requirements),
        ("opencv", installation.opencv),
        ("torchvision", installation.torchvision),
        ("extras", installation.extras),
        ("storage", machine.storage),
        ("hub", machine.hub),
        ("configs", selftest.configs),
        ("weights", selftest.seals),
    ]
    last: list[tuple[str, Check]] = [
        ("device", machine.devices),
        ("cpu", machine.processor),
        ("memory", machine.memory),
        ("prediction", selftest.predictions),
    ]
    for name, check in first:
        yield from _survived(name, check)
    try:
        import torch  # noqa: F401
    except Exception as error:
        reason = f"torch cannot be imported: {describe(error)}"
        yield Finding("torch", FAIL, _private(reason), "pip install --force-reinstall torch")
        names = ", ".join(name for name, _ in last)
        yield Finding("not checked", WARN, f"{names}, which need torch", "mend torch, and run densekit doctor again")
        return
    for name, check in last:
        yield from _survived(name, check)


def _survived(name: str, check: Check) -> Iterator[Finding]:
    """Yields what a check finds, and its own failure as a finding."""
    try:
        for finding in check():
            yield dataclasses.replace(finding, found=_private(finding.found), next=_private(finding.next))
    except Exception as error:
        yield Finding(
            name, FAIL, _private(describe(error)), "see densekit doctor --debug, or report it with these lines"
        )


def _private(text: str) -> str:
    """Returns a text on one line without the path of the home folder, which tells the user's name."""
    home = str(Path.home())
    return printable(text.replace(home, "~") if len(home) > 1 else text)

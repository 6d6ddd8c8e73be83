"""`densekit completion`: the shell's own completion of commands, options and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from densekit.cli.options import Choice

VARIABLE = "_DENSEKIT_COMPLETE"  # by which the script asks; click reads it
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints the script that lets a shell complete commands, options, models and configs.

    \b
    bash:  eval "$(densekit completion bash)"        in ~/.bashrc
    zsh:   eval "$(densekit completion zsh)"         in ~/.zshrc
    fish:  densekit completion fish > ~/.config/fish/completions/densekit.fish
    """  # noqa: D301 - the character itself keeps click from wrapping the lines
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "densekit", VARIABLE).source())

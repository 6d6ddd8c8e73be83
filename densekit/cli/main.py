"""The root command, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from densekit import __version__
from densekit.cli.bn import bn
from densekit.cli.completion import completion
from densekit.cli.doctor import doctor
from densekit.cli.encoder import encoder
from densekit.cli.models import models
from densekit.cli.process import describe
from densekit.cli.seg import seg
from densekit.cli.sr import sr
from densekit.errors import DensekitError

_EPILOG = """\b
Exit codes: 0 all done; 1 some inputs failed, or writing stopped; 2 usage, config
or output names; 3 data; 4 device or memory; 5 damaged or unsafe weights;
130, 143 interrupted. Results go to stdout, everything else to stderr.
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(__version__, message="densekit %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks; allowed anywhere in the line.")
def root() -> None:
    """Super-resolve and segment images with densely connected networks."""


root.add_command(sr)
root.add_command(seg)
root.add_command(encoder)
root.add_command(models)
root.add_command(bn)
root.add_command(doctor)
root.add_command(completion)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command line (default: this process's own) and returns its exit code."""
    words, debug = _take_debug(list(sys.argv[1:] if args is None else args))
    try:
        # Not standalone: there click would end Ctrl-C with 1, and know nothing of our codes.
        code = root.main(words, prog_name="densekit", standalone_mode=False, obj=debug)
        sys.stdout.flush()  # here, where a reader that went away (`| head`) can still be handled
        return code or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("error: interrupted; nothing is half written", err=True)
        return 130
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        for line in describe(error).splitlines():
            click.echo(f"error: {line}", err=True)
        return error.exit_code if isinstance(error, DensekitError) else 1


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """Returns the words without `--debug`, and whether it was there; it is needed even if the rest cannot be parsed."""
    end = words.index("--") if "--" in words else len(words)
    return [word for word in words[:end] if word != "--debug"] + words[end:], "--debug" in words[:end]

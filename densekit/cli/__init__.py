"""The command line. Nothing here imports torch, numpy or pydantic until a command needs it."""

from densekit.cli.main import main

__all__ = ["main"]

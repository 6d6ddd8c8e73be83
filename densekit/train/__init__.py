"""The one training loop and what stands around it."""

from densekit.train.loop import train

__all__ = ["train"]

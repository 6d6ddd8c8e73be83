"""The one training loop and what stands around it."""

from densekit.train.loop import train
from densekit.train.rehearsal import rehearse

__all__ = ["rehearse", "train"]

"""Networks made ready for prediction: same results, less work."""

from __future__ import annotations

from densekit.blocks.inference.rewrite import optimize

__all__ = ["optimize"]

"""densekit: super-resolve and segment images with densely connected networks.

The public names are loaded on first use: importing densekit imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densekit import metrics, resize
    from densekit.blocks import DenseBlock
    from densekit.errors import DensekitError
    from densekit.models import create_encoder, create_model
    from densekit.predict import Segmenter, Upscaler, load
    from densekit.pretrained import list_models

__version__ = "0.1.0"

_HOMES = {
    "DenseBlock": "densekit.blocks",
    "DensekitError": "densekit.errors",
    "Segmenter": "densekit.predict",
    "Upscaler": "densekit.predict",
    "create_encoder": "densekit.pretrained",
    "create_model": "densekit.models",
    "list_models": "densekit.pretrained",
    "load": "densekit.predict",
    "metrics": "",
    "resize": "",
}

__all__ = [
    "DenseBlock",
    "DensekitError",
    "Segmenter",
    "Upscaler",
    "create_encoder",
    "create_model",
    "list_models",
    "load",
    "metrics",
    "resize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'densekit' has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(importlib.import_module(home), name) if home else importlib.import_module(f"densekit.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

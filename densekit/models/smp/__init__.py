"""Our encoders under the decoders of segmentation_models_pytorch (SMP).

Importing this puts every encoder into SMP's table, for all of its networks:

    import densekit.models.smp
    import segmentation_models_pytorch as smp

    net = smp.DeepLabV3Plus("densekit-densenet121", encoder_weights=None, in_channels=4)

`"densekit-densenet121-smp"`, and so on for each DenseNet, gives SMP's own features, for decoders trained on those: its
deepest is not rectified.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch

from densekit.models.densenet import DenseNetEncoder
from densekit.models.smp.encoders import (
    SmpDenseNet,
    SmpEncoder,
    SmpFCDenseNet,
    SmpRDNet,
    encoder_arguments,
    encoder_names,
    encoder_type,
)
from densekit.models.smp.network import DECODERS, Decoder, EncoderDecoder

__all__ = [
    "DECODERS",
    "Decoder",
    "EncoderDecoder",
    "SmpDenseNet",
    "SmpEncoder",
    "SmpFCDenseNet",
    "SmpRDNet",
    "encoder_arguments",
    "encoder_names",
    "register",
]


def register() -> None:
    """Puts our encoders into SMP's table as "densekit-densenet121" and so on; importing this module has done it.

    Where SMP has weights for the same network, `encoder_weights="imagenet"` fetches those.
    """
    table: dict[str, Any] = segmentation_models_pytorch.encoders.encoders
    for name in encoder_names():
        kind, params = encoder_type(name), encoder_arguments(name)
        settings = table[name]["pretrained_settings"] if name in table else {}
        entry = {"encoder": kind, "params": params, "pretrained_settings": settings}
        table[f"densekit-{name}"] = entry
        if issubclass(kind, DenseNetEncoder):
            table[f"densekit-{name}-smp"] = {**entry, "params": {**params, "taps": "smp"}}


register()

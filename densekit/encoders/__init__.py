"""Encoders on the desk: what they give and cost, what their features are, and how they compare."""

from densekit.encoders.charts import gradient_picture, reuse_picture
from densekit.encoders.description import Description, Summary, Tap, describe, summarise
from densekit.encoders.gradients import LayerGradient, early_share, gradient_norms
from densekit.encoders.opening import PEER, Found, build, encoder_in, find_encoder, is_encoder, peer_classifier, seeded
from densekit.encoders.reuse import Reuse, feature_reuse

__all__ = [
    "PEER",
    "Description",
    "Found",
    "LayerGradient",
    "Reuse",
    "Summary",
    "Tap",
    "build",
    "describe",
    "early_share",
    "encoder_in",
    "feature_reuse",
    "find_encoder",
    "gradient_norms",
    "gradient_picture",
    "is_encoder",
    "peer_classifier",
    "reuse_picture",
    "seeded",
    "summarise",
]

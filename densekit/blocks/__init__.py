"""The dense-block engine under every network: connectivity is one class, the layer is its argument."""

from densekit.blocks.budget import MemoryPlan, fit_memory, has_budget, saved_bytes, set_memory
from densekit.blocks.chain import Chain
from densekit.blocks.dense import DenseBlock
from densekit.blocks.fields import radius
from densekit.blocks.inference import optimize
from densekit.blocks.init import init_densenet_, init_he_normal_, init_he_uniform_
from densekit.blocks.layers import BasicLayer, BottleneckLayer, ConvLayer, Transition
from densekit.blocks.memory import MEMORY_POLICIES
from densekit.blocks.residual import RRDB, ResidualDenseBlock
from densekit.blocks.upsample import BicubicSkip, EspcnTail, PixelShuffleTail

__all__ = [
    "MEMORY_POLICIES",
    "RRDB",
    "BasicLayer",
    "BicubicSkip",
    "BottleneckLayer",
    "Chain",
    "ConvLayer",
    "DenseBlock",
    "EspcnTail",
    "MemoryPlan",
    "PixelShuffleTail",
    "ResidualDenseBlock",
    "Transition",
    "fit_memory",
    "has_budget",
    "init_densenet_",
    "init_he_normal_",
    "init_he_uniform_",
    "optimize",
    "radius",
    "saved_bytes",
    "set_memory",
]

"""The dense-block engine under every network: connectivity is one class, the layer is its argument."""

from densekit.blocks.dense import DenseBlock, set_memory
from densekit.blocks.fields import radius
from densekit.blocks.inference import optimize
from densekit.blocks.init import init_densenet_, init_he_normal_, init_he_uniform_
from densekit.blocks.layers import BasicLayer, BottleneckLayer, ConvLayer, Transition
from densekit.blocks.memory import MEMORY_POLICIES
from densekit.blocks.residual import RRDB, ResidualDenseBlock
from densekit.blocks.upsample import BicubicSkip, PixelShuffleTail

__all__ = [
    "MEMORY_POLICIES",
    "RRDB",
    "BasicLayer",
    "BicubicSkip",
    "BottleneckLayer",
    "ConvLayer",
    "DenseBlock",
    "PixelShuffleTail",
    "ResidualDenseBlock",
    "Transition",
    "init_densenet_",
    "init_he_normal_",
    "init_he_uniform_",
    "optimize",
    "radius",
    "set_memory",
]

"""The bottleneck layer of a dense block in few passes over memory: Triton kernels, plain torch where there are none.

The maps of a block lie in one buffer, channels last, and a layer reads the first c channels of each pixel where they
are: norm and ReLU happen on the way into the matrix product. Triton is imported with the first CUDA tensor, and it is
used for a shape where it was measured to be faster than torch's own operators and to give the same.
"""

from densekit.blocks.kernels.choice import choose
from densekit.blocks.kernels.operations import bottleneck_forward, pointwise_backward, pointwise_measured

__all__ = ["bottleneck_forward", "choose", "pointwise_backward", "pointwise_measured"]

"""What the kernels compute, in torch's own operators: their reference, and what runs where they cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rectified(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Returns relu(a x + b) for maps (B, c, H, W), a and b (c,), computed at least in float32 and rounded once."""
    # As a norm of mean 0 and variance 1: one pass that reads half precision, multiplies in float32, and writes half.
    return F.batch_norm(x, torch.zeros_like(a), torch.ones_like(a), a, b, eps=0.0).relu_()


def bottleneck_forward(
    x: Tensor, a: Tensor, b: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dilation: int, out: Tensor
) -> Tensor:
    """Writes conv3x3(relu(conv1x1(relu(a x + b)) + bias1)) into `out` and returns it; shapes as in `operations`."""
    y = rectified(x, a, b).to(weight1.dtype)
    h = F.conv2d(y, weight1, bias1.to(weight1.dtype)).relu_()
    return out.copy_(F.conv2d(h, weight2, padding=dilation, dilation=dilation))


def pointwise_measured(x: Tensor, a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns u = conv1x1(relu(a x + b)), and mean and biased variance of each of its channels."""
    u = F.conv2d(rectified(x, a, b).to(weight.dtype), weight)
    var, mean = torch.var_mean(u.to(torch.promote_types(u.dtype, torch.float32)), (0, 2, 3), correction=0)
    return u, mean, var


def pointwise_backward(
    du: Tensor, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds `scale` dz to `grad`; returns the weight's gradient, the sums of dz and of dz (x - mean)."""
    y = rectified(x, a, b).to(weight.dtype)
    dy, dw, _ = torch.ops.aten.convolution_backward(
        du, y, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    dz = torch.ops.aten.threshold_backward(dy, y, 0).to(mean.dtype)
    grad.add_(dz * scale.view(1, -1, 1, 1))
    return dw.to(mean.dtype), dz.sum((0, 2, 3)), (dz * (x - mean.view(1, -1, 1, 1))).sum((0, 2, 3))

"""Dense connectivity: every layer sees all earlier maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from densekit.blocks.memory import check_memory


class DenseBlock(nn.Module):
    """Concatenates the input and the outputs of `num_layers` layers, each fed with everything before it.

    Children are named `denselayer1` .. `denselayerL`, which makes torchvision's DenseNet keys load as they are.

    Args:
        in_channels: c0, channels of the block's input.
        num_layers: L.
        growth_rate: k, channels each layer adds.
        make_layer: `make_layer(channels)` returns a module (B, channels, H, W) -> (B, growth_rate, H, W).
        memory: how training memory is spent, one of `MEMORY_POLICIES`.

    Shapes: (B, c0, H, W) -> (B, c0 + L k, H, W), the input's channels first, then each layer's in order.

    Source: Huang et al., Densely Connected Convolutional Networks (CVPR 2017), section 3.
    """

    def __init__(
        self,
        in_channels: int,
        num_layers: int,
        growth_rate: int,
        make_layer: Callable[[int], nn.Module],
        *,
        memory: str = "speed",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = in_channels + num_layers * growth_rate
        self.memory = check_memory(memory)
        for i in range(num_layers):
            self.add_module(f"denselayer{i + 1}", make_layer(in_channels + i * growth_rate))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.children():
            # One concatenation of the list costs less than growing a tensor layer by layer.
            features.append(layer(torch.cat(features, dim=1) if len(features) > 1 else x))
        return torch.cat(features, dim=1)


def set_memory(module: nn.Module, memory: str) -> None:
    """Gives every dense block inside `module` the policy `memory`.

    Raises:
        ConfigError: no such policy.
    """
    check_memory(memory)
    for child in module.modules():
        if isinstance(child, DenseBlock):
            child.memory = memory

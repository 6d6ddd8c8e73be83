"""Dense connectivity: every layer sees all earlier maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from densekit.blocks.engine import Plan, SharedBuffer
from densekit.blocks.memory import check_policy
from densekit.blocks.parts import Stage, autocast_dtype, common_eps, has_hooks, learns
from densekit.blocks.second import Anchor


class DenseBlock(nn.Module):
    """Concatenates its inputs and the outputs of `num_layers` layers, each fed with everything before it.

    Children are named `denselayer1` .. `denselayerL`, which makes torchvision's DenseNet keys load as they are.

    Args:
        in_channels: c0, channels of the block's input.
        num_layers: L.
        growth_rate: k, channels each layer adds.
        make_layer: `make_layer(channels)` returns a module (B, channels, H, W) -> (B, growth_rate, H, W).
        memory: how training memory is spent, one of `MEMORY_POLICIES`.
        layer_name: `layer_name(i)` is the name of the i-th child, counted from 1, where weights have other keys.

    Shapes: (B, c0, H, W), or several inputs that have c0 channels together -> (B, c0 + L k, H, W), the inputs'
    channels first, then each layer's in order; with `only_new` (B, L k, H, W), the layers' alone.

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
        layer_name: Callable[[int], str] = "denselayer{}".format,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels: int = in_channels + num_layers * growth_rate
        self.growth_rate = growth_rate
        self.memory: str = check_policy(memory)
        for i in range(num_layers):
            self.add_module(layer_name(i + 1), make_layer(in_channels + i * growth_rate))

    def forward(self, *inputs: Tensor, only_new: bool = False) -> Tensor:
        plan = self._plan(inputs, only_new)
        if plan is not None:
            output: Tensor = SharedBuffer.apply(plan, *inputs, *self.parameters())
            return output
        features = list(inputs)
        for layer in self.children():
            # One concatenation of the list costs less than growing a tensor layer by layer.
            features.append(layer(torch.cat(features, dim=1) if len(features) > 1 else features[0]))
        return torch.cat(features[len(inputs) :] if only_new else features, dim=1)

    def _plan(self, inputs: Sequence[Tensor], only_new: bool) -> Plan | None:
        """Returns how the engine runs this block, or None where concatenation does: nothing to learn, export, hooks."""
        if self.memory == "speed" or not learns(*inputs, *self.parameters()):
            return None
        layers: list[list[Stage]] = [getattr(layer, "stages", list)() for layer in self.children()]
        if not all(layers) or any(map(has_hooks, self.children())):
            return None
        if not all(stage.is_known for stages in layers for stage in stages):
            return None
        try:
            eps, group = common_eps(layers)
        except ValueError:
            return None
        return Plan(
            anchors=[Anchor.apply(x) for x in inputs],
            only_new=only_new,
            layers=layers,
            in_channels=self.in_channels,
            growth_rate=self.growth_rate,
            eps=eps,
            group=group,
            keep=self.memory == "balanced",
            autocast=autocast_dtype(inputs[0].device),
        )

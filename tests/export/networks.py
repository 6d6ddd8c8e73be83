"""Small networks of every kind, with weights and statistics that are not those of a fresh network."""

from __future__ import annotations

import torch
from torch import nn

from densekit.cards import Card
from densekit.models import MODELS, create_encoder, create_model

SMALL = {"growth_rate": 8, "block_config": (1, 1, 1, 1), "num_init_features": 8}
RDN = {"num_features": 8, "num_blocks": 2, "num_layers": 2, "growth_rate": 4}
SRDENSENET = {"num_features": 8, "num_blocks": 2, "num_layers": 2, "growth_rate": 4, "bottleneck_features": 8}
FC = {"num_init_features": 8, "growth_rate": 4, "num_layers": 1, "num_classes": 3}
RDNET = {"num_init_features": 8, "growth_rate": (8,) * 4, "block_config": (1,) * 4, "strides": (1, 2, 2, 2)}
FIVE = {"decoder_channels": (16, 16, 8, 8, 8)}
WIDTH = {"linknet": {}, "unet": FIVE, "unetplusplus": FIVE, "manet": FIVE}
DECODERS = [name for name, entry in MODELS.items() if entry.arguments.get("decoder")]

NETWORKS: dict[str, tuple[str, dict]] = {
    "rdn": ("rdn", {"scale": 2, **RDN, "bicubic_skip": True}),
    "fc_densenet": ("fc_densenet", {**FC, "num_pools": 3}),
    "rdn direct": ("rdn", {"scale": 3, **RDN, "upsampler": "pixelshuffledirect", "bicubic_skip": True}),
    "rdn espcn": ("rdn", {"scale": 4, **RDN, "upsampler": "espcn"}),
    "srdensenet": ("srdensenet", {**SRDENSENET, "scale": 4}),
    "rrdbnet": ("rrdbnet", {"num_features": 8, "num_blocks": 1, "growth_rate": 4}),
    "rrdbnet x2 unshuffle": ("rrdbnet", {"scale": 2, "num_features": 8, "num_blocks": 1, "growth_rate": 4}),
    "rrdbnet x1 unshuffle": ("rrdbnet", {"scale": 1, "num_features": 8, "num_blocks": 1, "growth_rate": 4}),
    "fc_densenet five pools": ("fc_densenet", {**FC, "num_pools": 5, "num_classes": 1}),
    **{name: (name, {**SMALL, **WIDTH.get(name, {"decoder_channels": 32}), "num_classes": 3}) for name in DECODERS},
    "densenet": ("densenet", {**SMALL, "num_classes": 7}),
    "rdnet": ("rdnet_tiny", {**RDNET, "num_classes": 7}),
}
ENCODERS: dict[str, tuple[str, dict]] = {
    "densenet": ("densenet", {**SMALL, "out_indices": (1, 2, 4)}),
    "rdnet": ("rdnet_tiny", {**RDNET, "out_indices": (1, 2, 4)}),
    "fc_densenet": ("fc_densenet", {key: FC[key] for key in FC if key != "num_classes"} | {"out_indices": (0, 2, 5)}),
}


def make(key: str) -> tuple[nn.Module, Card]:
    """Returns a network in evaluation mode, and a card."""
    name, arguments = NETWORKS[key]
    return _settled(create_model(name, **arguments)), Card(MODELS[name].task, name, dict(arguments))


def make_encoder(key: str) -> tuple[nn.Module, Card]:
    """Returns an encoder with three outputs."""
    name, arguments = ENCODERS[key]
    return _settled(create_encoder(name, **arguments)), Card("encoder", name, dict(arguments))


def _settled(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.3 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return net.eval()

"""Initialisation, as each paper has it."""

from __future__ import annotations

from torch import nn


def init_densenet_(net: nn.Module) -> None:
    """DenseNet: convolutions N(0, sqrt(2 / (k k C_out))), norms 1 and 0, linear biases 0.

    torchvision and timm use fan-in under a comment that names the original; the Lua code has fan-out.

    Source: liuzhuang13/DenseNet `densenet.lua`; He et al. 2015.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def init_he_uniform_(net: nn.Module) -> None:
    """FC-DenseNet: convolutions U(-b, b) with b = sqrt(6 / fan_in), biases 0.

    Source: SimJeg/FC-DenseNet `layers.py` (HeUniform with gain "relu").
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_he_normal_(net: nn.Module, gain: float = 1.0) -> None:
    """SRDenseNet and, with gain 0.1, RRDBNet: convolutions gain N(0, sqrt(2 / fan_in)), biases 0.

    Source: xinntao/ESRGAN `RRDBNet_arch.py`; He et al. 2015.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            module.weight.data.mul_(gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

"""A loss on the features of VGG19."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.errors import CheckpointError, ConfigError, suggest
from densekit.files import printable

STAGES, WIDTHS = (2, 2, 4, 4, 4), (64, 128, 256, 512, 512)  # convolutions before each pooling, and their channels
ESRGAN = {"conv5_4": 1.0}  # Wang et al. (ECCVW 2018): before activation, where more of the features is not 0
REAL_ESRGAN = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}  # Wang et al. (2021)


def layer_names() -> list[str]:
    """Returns the names of VGG19's layers in order: conv1_1, relu1_1, conv1_2, ..., pool5."""
    names = []
    for stage, count in enumerate(STAGES, start=1):
        for number in range(1, count + 1):
            names += [f"conv{stage}_{number}", f"relu{stage}_{number}"]
        names.append(f"pool{stage}")
    return names


class Perceptual(nn.Module):
    """Maps (sr, hr), RGB (B, 3, H, W) in [0, 1], to the weighted sum of L1 between their features in VGG19.

    Sides of 16 pixels or more for layers up to stage 5. The network is frozen; gradients reach `sr` alone.

    Args:
        weights: a file of torchvision's VGG19 (`.pth`, `.safetensors`), "imagenet" for the one torchvision downloads
            (575 MB), or None for random weights of a fixed seed, which tell textures apart less well.
        layers: weight of each layer.

    Raises:
        ConfigError: an unknown layer or none, or "imagenet" without torchvision.
        CheckpointError: the file cannot be read or is not VGG19's.

    Source: Johnson et al. (ECCV 2016); layers as in ESRGAN, or REAL_ESRGAN of this module.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path | None, layers: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.layers: dict[str, float] = dict(ESRGAN if layers is None else layers)
        names = layer_names()
        if not self.layers:
            raise ConfigError("the perceptual loss has no layers; expected one at least, such as conv5_4")
        for name in self.layers:
            if name not in names:
                raise ConfigError(f"VGG19 has no layer {name!r}{suggest(name, names)} (such as conv5_4 or relu3_3)")
        self.names: list[str] = names[: 1 + max(map(names.index, self.layers))]
        self.features: nn.Sequential = _vgg19(len(self.names), weights).requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features_of(hr)
        found = self.features_of(sr)
        total = sr.new_zeros(())
        for name, weight in self.layers.items():
            total = total + weight * F.l1_loss(found[name], wanted[name])
        return total

    def features_of(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the features of the chosen layers, by name."""
        x = (x - self.mean) / self.std
        features = {}
        for name, module in zip(self.names, self.features, strict=True):
            x = module(x)
            if name in self.layers:
                features[name] = x
        return features


def _vgg19(num_modules: int, weights: str | Path | None) -> nn.Sequential:
    """Returns the first `num_modules` modules of VGG19, with torchvision's numbers as names."""
    modules: list[nn.Module] = []
    channels = 3
    with torch.device("meta"):  # no weights yet, and so no draws from the global generator either
        for count, width in zip(STAGES, WIDTHS, strict=True):
            for _ in range(count):
                modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            modules.append(nn.MaxPool2d(2))
        features = nn.Sequential(*modules[:num_modules])
    features.to_empty(device="cpu")
    if weights is None:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in features.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            else:
                nn.init.zeros_(parameter)
        return features
    state = _download() if weights == "imagenet" else _read(Path(weights))
    own = {key.removeprefix("features."): value for key, value in state.items()}
    try:
        features.load_state_dict({key: own[key] for key in features.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{printable(weights)}: not the weights of torchvision's VGG19 (without batch norm); "
            "expected features.0.weight to features.34.bias"
        ) from error
    return features


def _download() -> dict[str, Tensor]:
    try:
        models: Any = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise ConfigError(
            "VGG19's imagenet weights come with torchvision, which is missing; run: pip install torchvision, "
            "or give a file of them"
        ) from error
    return models.VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # ten kinds, and any is a file that cannot be used
        reason = error.strerror if isinstance(error, OSError) else "damaged, or no file of weights"
        raise CheckpointError(f"{printable(path)}: cannot be read as weights of VGG19: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{printable(path)}: holds no plain table of tensors; expected torchvision's VGG19")
    return state

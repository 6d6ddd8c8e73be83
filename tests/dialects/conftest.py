from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from densekit.cards import Card
from densekit.checkpoint import save_model
from densekit.models import create_model

SMALL = {"growth_rate": 8, "block_config": [2, 1, 2, 1], "num_init_features": 16, "bn_size": 2}
CARD = Card(
    "encoder",
    "densenet",
    {**SMALL, "num_classes": 5},
    step=7,
    metrics={"top1": 0.125, "protocol": "own"},
    data='pictures of "five" kinds, in Zürich\nand elsewhere',
    licence="CC0",
    recipe="task: encoder\n",
)


def randomize(net: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every norm statistics and weights of its own, as training would, and every counter a number."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            nn.init.normal_(module.weight, 1, 0.3, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
            module.num_batches_tracked.fill_(int(torch.randint(1, 100, (), generator=generator)))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
    return net.eval()


def largest_difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Returns the largest difference of two networks' outputs, in units of the largest output."""
    with torch.inference_mode():
        ours, theirs = one.eval()(x), other.eval()(x)
    assert theirs.std() > 1e-3, "outputs that say nothing"
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture
def picture() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def save(tmp_path):
    """Saves an object as torch does and returns the path."""

    def write(content: object, name: str = "theirs.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def own(tmp_path):
    """Saves a network of ours with weights that are not those of the start, and returns the path."""

    def write(card: Card = CARD, name: str = "own.safetensors", **options) -> Path:
        net = randomize(create_model(card.model, **card.arguments))
        save_model(tmp_path / name, net, card, **options)
        return tmp_path / name

    return write

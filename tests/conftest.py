from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from densekit.cards import Card
from densekit.checkpoint import save_model
from densekit.models import create_model

TINY_SR = {
    "scale": 2,
    "num_features": 8,
    "num_blocks": 1,
    "num_layers": 1,
    "growth_rate": 8,
    "upsampler": "pixelshuffledirect",
    "bicubic_skip": True,
}
TINY_SEG = {"num_init_features": 8, "growth_rate": 4, "num_pools": 2, "num_layers": 1, "drop_rate": 0.0}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For maps that are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _save(path: Path, card: Card) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_model(path, create_model(card.model, **card.arguments), card)
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def tiny_sr(checkpoints) -> Path:
    """A x2 RDN of one block with one layer and seeded random weights on top of a bicubic skip."""
    return _save(checkpoints / "tiny-sr.safetensors", Card("sr", "rdn", TINY_SR))


@pytest.fixture(scope="session")
def tiny_seg(checkpoints) -> Path:
    """An FC-DenseNet of three classes and two pools with seeded random weights."""
    card = Card(
        "seg",
        "fc_densenet",
        {"num_classes": 3, **TINY_SEG},
        classes=("road", "sky", "tree"),
        palette=((128, 64, 128), (128, 128, 128), (128, 128, 0)),
    )
    return _save(checkpoints / "tiny-seg.safetensors", card)


@pytest.fixture(scope="session")
def tiny_binary(checkpoints) -> Path:
    """An FC-DenseNet of one logit and two pools with seeded random weights."""
    card = Card("seg", "fc_densenet", {"num_classes": 1, **TINY_SEG}, classes=("background", "nucleus"))
    return _save(checkpoints / "tiny-binary.safetensors", card)

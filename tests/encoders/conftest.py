from __future__ import annotations

import pytest
import torch

from densekit import models
from densekit.models import Entry

TINY = {"growth_rate": 4, "block_config": (1, 2, 2, 1), "num_init_features": 8, "bn_size": 2}


@pytest.fixture
def tiny(monkeypatch):
    """The name of a DenseNet that is small enough to be trained in a test, for as long as it lasts."""
    entry = Entry("encoder", "densenet:DenseNet", {**TINY, "num_classes": 5}, "densenet:DenseNetEncoder")
    monkeypatch.setitem(models.MODELS, "densenet_tiny", entry)
    return "densenet_tiny"


@pytest.fixture
def lived():
    """Gives a network's batch norms statistics and factors as training leaves them, and amplifies its weights."""

    def change(net, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.3, generator=generator)
                    module.running_var.uniform_(0.5, 2, generator=generator)
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.2, generator=generator)
        return net

    return change

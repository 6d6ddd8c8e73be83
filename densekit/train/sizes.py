"""Which network a run of so many minutes can train on this machine, with crops that the pictures hold."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from densekit.cards import read_card
from densekit.datasets.survey import Survey
from densekit.errors import ConfigError
from densekit.models import MODELS, create_model, model_class
from densekit.pretrained import find_weights
from densekit.tiling import OUT_OF_MEMORY


class Size(NamedTuple):
    """A network, the crops it learns from, and the optimizer steps below which a smaller one does better."""

    model: dict[str, Any]
    crop_size: int
    batch_size: int
    least_steps: int = 0
    optim: tuple[str, float, float] = ("muon", 2e-3, 0.01)  # name, learning rate, weight decay


# By rising cost. A run gets the last one whose `least_steps` fit into its minutes on this machine, or else the first.
# Measured on one thread: on 8 pictures of nuclei, 200 steps of the first network for seg end with IoU 0.87 on these
# (19 s), and with four crops of 128 pixels in place of eight of 64 with 0.62 (28 s), both with AdamW at 1e-2. For sr x2
# the first has 35.36 dB on Set5 after 400 steps (27 s), 36.66 after 1,600 (105 s), the second 35.56 after 300 (86 s).
# The larger `least_steps` are estimates: these networks were not measured against each other over such runs.
SIZES: dict[str, tuple[Size, ...]] = {
    "seg": (
        Size(
            {"name": "fc_densenet", "num_init_features": 8, "growth_rate": 8, "num_pools": 4}
            | {"num_layers": [0, 1, 2, 3, 4, 3, 2, 1, 1], "drop_rate": 0.0},
            crop_size=64,
            batch_size=8,
            optim=("muon", 5e-3, 0.01),
        ),
        Size(
            {"name": "fc_densenet", "num_init_features": 16, "growth_rate": 8, "num_pools": 3}
            | {"num_layers": [1, 3, 4, 5, 4, 3, 1], "drop_rate": 0.0},
            crop_size=128,
            batch_size=8,
            least_steps=1500,
        ),
        Size(
            {"name": "fc_densenet", "num_init_features": 16, "growth_rate": 16, "num_pools": 5}
            | {"num_layers": [0, 2, 3, 4, 5, 6, 5, 4, 3, 1, 1], "drop_rate": 0.0},
            crop_size=224,
            batch_size=4,
            least_steps=4000,
        ),
        Size({"name": "fc_densenet103"}, crop_size=224, batch_size=4, least_steps=20_000),
    ),
    "sr": (
        Size(
            {"name": "rdn", "num_features": 16, "num_blocks": 2, "num_layers": 3, "growth_rate": 12}
            | {"upsampler": "pixelshuffledirect", "bicubic_skip": True},
            crop_size=32,
            batch_size=8,
            optim=("muon", 5e-3, 0.01),
        ),
        Size(
            {"name": "rdn", "num_features": 32, "num_blocks": 5, "num_layers": 4, "growth_rate": 16}
            | {"upsampler": "pixelshuffledirect", "bicubic_skip": True},
            crop_size=48,
            batch_size=8,
            least_steps=5000,
        ),
        Size(
            {"name": "rdn", "num_features": 48, "num_blocks": 8, "num_layers": 5, "growth_rate": 24}
            | {"upsampler": "pixelshuffledirect", "bicubic_skip": True},
            crop_size=64,
            batch_size=16,
            least_steps=20_000,
        ),
    ),
}
ASKED = {"seg": Size({}, 224, 4, optim=("adamw", 1e-3, 1e-4)), "sr": Size({}, 48, 8, optim=("adamw", 5e-4, 0.0))}
STARTED_FROM = {"seg": Size({}, 128, 8, optim=("muon", 1e-3, 0.01)), "sr": Size({}, 48, 8, optim=("muon", 5e-4, 0.0))}
SMALLEST_CROP = {"seg": 32, "sr": 16}
CROP_GRID = 16
ENOUGH = 1.0  # second of a pass, which is then not repeated
DEAREST = 2  # times as much as the one before it is what a size costs at least, on a CPU


def choose_size(sizes: Sequence[Size], own: Mapping[str, Any], seconds: float, device: torch.device) -> Size:
    """Returns the last of some sizes whose `least_steps` fit into the time on this device, or the first.

    Each is timed on noise, forward and backward. The next one is tried only where twice the cost of the one before
    would fit.
    """
    chosen, cost = sizes[0], 0.0
    for size in sizes:
        if DEAREST * cost * size.least_steps > seconds:
            break
        cost = seconds_on_noise(size, own, device)
        if cost * size.least_steps > seconds:
            break
        chosen = size
    return chosen


def seconds_on_noise(size: Size, own: Mapping[str, Any], device: torch.device) -> float:
    """Returns the seconds of a forward and backward pass, or infinity where memory does not suffice."""
    arguments = {**size.model, **own}
    net = create_model(arguments.pop("name"), **arguments).to(device).to(memory_format=torch.channels_last).train()
    x = torch.rand(size.batch_size, 3, size.crop_size, size.crop_size, device=device)
    passed = math.inf
    try:
        for _ in range(3):
            began = time.monotonic()
            net(x).square().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            last = time.monotonic() - began
            passed = min(passed, last)
            if last > ENOUGH:
                break
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return passed


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Tells that memory did not suffice from other errors."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def ask_for(name: str, task: str) -> Size:
    """Returns the size for a network of the user's choice.

    Raises:
        ConfigError: no such network, or one of another task.
    """
    model_class(name)
    if MODELS[name].task != task:
        raise ConfigError(f"--model {name}: is for task {MODELS[name].task}, not {task} (densekit models lists all)")
    return ASKED[task]._replace(model={"name": name})


def start_from(weights: str, task: str) -> Size:
    """Returns the size for a trained model to start from.

    Raises:
        ConfigError, CheckpointError: no such model, or one of another task.
    """
    card = read_card(find_weights(weights))
    if card.task != task:
        raise ConfigError(f"--from {weights}: is for task {card.task}, not {task} (densekit models lists all)")
    return STARTED_FROM[task]._replace(model={"name": card.model, **card.arguments})


def fitted(size: Size, survey: Survey, task: str, scale: int) -> Size:
    """Returns a size whose crops the pictures hold: every one in sr, where smaller ones are left out, or the larger."""
    side = min(survey.train["smallest" if task == "sr" else "largest"]) // scale
    crop = max(SMALLEST_CROP[task], min(size.crop_size, side // CROP_GRID * CROP_GRID))
    return size._replace(crop_size=crop)

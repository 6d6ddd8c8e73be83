"""Two steps of a run, to see that it works and what it costs; nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from densekit.config import Config
from densekit.errors import DataError
from densekit.memory import peak_memory
from densekit.tasks import Task
from densekit.train.loop import add_gradients
from densekit.train.optim import clip_gradients, create_optimizer, set_rate
from densekit.train.parallel import make_forward, shard, synchronize_norms

STEPS = 2  # the first warms caches and allocators up, the second is measured


def rehearse(task: Task, config: Config, device: str = "cpu") -> Iterator[str]:
    """Yields lines that say what a run is made of, and what it will take.

    Args:
        task: as for `train`.
        config: as for `train`.
        device: "cpu", "cuda", ...

    Raises:
        DataError: the loss is not finite.
    """
    options = config.train
    if options.threads:
        torch.set_num_threads(options.threads)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    net = task.build_model().to(device=device).to(memory_format=layout).train()
    if options.sync_norm:
        net = synchronize_norms(net, device)
    if options.parallel == "fsdp":
        shard(net, device)
    optimizer = create_optimizer(net, config.optim)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in net.parameters()) - trained
    yield f"{config.model.name}: {trained:,} parameters" + (f", and {frozen:,} frozen" if frozen else "")
    adversary = task.adversary
    if adversary:
        adversary.begin(device)
        judge = sum(p.numel() for p in adversary.net.parameters())
        yield f"discriminator {adversary.options.discriminator}: {judge:,} parameters"
    yield task.describe_data()

    scaler = torch.amp.GradScaler(device, enabled=options.precision == "fp16")
    forward = make_forward(net, compiled=options.compile)
    batches, losses, seconds = task.train_batches(0), [], 0.0
    set_rate(optimizer, config.optim.learning_rate * 1e-3)  # the first steps of a run are small
    for step in range(STEPS):
        began = time.monotonic()
        losses.append(add_gradients(task, forward, batches, scaler, config, device, step))
        clip_gradients(net, optimizer, scaler, config.optim.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if adversary:
            adversary.step(1e-3, lambda *_: True)
        seconds = time.monotonic() - began
    if not all(map(math.isfinite, losses)):
        raise DataError(
            f"the loss of the first steps is {losses[0]} and {losses[1]}; check data and optim.learning_rate"
        )
    yield f"{STEPS} steps: loss {losses[0]:.4f} and {losses[1]:.4f}, {seconds:.2f} s for the second"
    yield f"peak memory {peak_memory(device) / 2**30:.2f} GiB"
    yield f"{options.total_steps} steps: about {duration(seconds * options.total_steps)}, evaluations not counted"


def duration(seconds: float) -> str:
    """Returns a time in hours and minutes, as rough as it is known."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"

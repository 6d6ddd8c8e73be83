"""Prints how many times as fast as segmentation_models_pytorch our losses are. `python -m tools.bench_losses`

Forward and backward of both in turn, on one thread, and the median of each. The clock is the processor time of the
process, which other work on the machine disturbs less than the time on the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from densekit import losses

Loss = Callable[[Tensor, Tensor], Tensor]

SHAPE = (4, 11, 360, 480)  # CamVid
MODE = {"mode": "multiclass", "ignore_index": losses.IGNORE}
PAIRS: dict[str, tuple[Loss, Callable[[], Loss]]] = {
    "lovasz": (losses.lovasz, lambda: smp.losses.LovaszLoss(**MODE)),
    "focal": (losses.focal, lambda: smp.losses.FocalLoss(**MODE)),  # softmax against its one-against-the-rest
    "bfocal": (losses.binary_focal, lambda: smp.losses.FocalLoss(**MODE)),  # the same function
    "dice": (losses.dice, lambda: smp.losses.DiceLoss(**MODE)),
    "jaccard": (losses.jaccard, lambda: smp.losses.JaccardLoss(**MODE)),
    "tversky": (losses.tversky, lambda: smp.losses.TverskyLoss(**MODE, alpha=0.3, beta=0.7)),
    "ce": (losses.cross_entropy, lambda: torch.nn.CrossEntropyLoss(ignore_index=losses.IGNORE)),  # torch's own
}


def make_batch(shape: tuple[int, int, int, int] = SHAPE, sureness: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns random logits, by `sureness` higher for the right class, and a target with a tenth of it void."""
    generator = torch.Generator().manual_seed(0)
    batch, classes, height, width = shape
    logits = torch.randn(shape, generator=generator)
    target = torch.randint(classes, (batch, height, width), generator=generator)
    logits.scatter_add_(1, target[:, None], torch.full((batch, 1, height, width), sureness))
    void = torch.rand(target.shape, generator=generator) < 0.1
    return logits, target.where(~void, losses.IGNORE)


def seconds(loss: Loss, logits: Tensor, target: Tensor) -> float:
    """Returns processor seconds of one forward and backward."""
    logits = logits.clone().requires_grad_()
    start = time.process_time()
    loss(logits, target).backward()
    return time.process_time() - start


def compare(name: str, rounds: int = 5, sureness: float = 0.0) -> tuple[float, float]:
    """Returns median seconds of our loss and of theirs, taken in turn on one thread after one round to warm up."""
    ours, theirs = PAIRS[name][0], PAIRS[name][1]()
    batch = make_batch(sureness=sureness)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [(seconds(ours, *batch), seconds(theirs, *batch)) for _ in range(rounds + 1)][1:]
    finally:
        torch.set_num_threads(threads)
    mine, their = (statistics.median(side) for side in zip(*times, strict=True))
    return mine, their


@click.command()
@click.argument("names", nargs=-1)
@click.option("--rounds", default=5, show_default=True, help="Times each is measured.")
@click.option("--sureness", default=0.0, show_default=True, help="Logit by which the right class leads; 0: untrained.")
def main(names: tuple[str, ...], rounds: int, sureness: float) -> None:
    """Compare losses by NAMES, or all."""
    pixels = SHAPE[0] * SHAPE[2] * SHAPE[3] / 1e6
    print(f"forward + backward of {SHAPE}, one thread, medians of {rounds} in turn; Mpx a processor second")
    for name in names or PAIRS:
        ours, theirs = compare(name, rounds, sureness)
        print(f"{name:8} ours {pixels / ours:6.2f}   theirs {pixels / theirs:6.2f}   {theirs / ours:5.1f} times")


if __name__ == "__main__":
    main()

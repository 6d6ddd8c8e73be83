"""Random logits and targets of the three kinds of segmentation."""

from __future__ import annotations

import torch

from densekit.losses import IGNORE, SEG_LOSSES, segmentation_loss

KINDS = ("binary", "multiclass", "multilabel")
NAMES = [*SEG_LOSSES, "weighted ce", "weighted focal", "weighted ohem", "smooth ce", "smooth bce", "ce+0.5*dice"]
ALL = [(name, kind) for name in NAMES for kind in KINDS]


def make_case(kind, share_of_void=0.3, seed=0, size=(2, 9, 11), classes=4, dtype=torch.float32):
    """Returns logits, target and where the target is void, of the logits' shape."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = size
    classes = 1 if kind == "binary" else classes
    logits = 3 * torch.randn(batch, classes, height, width, generator=generator, dtype=torch.float64)
    shape = logits.shape if kind == "multilabel" else size
    target = torch.randint(classes if kind == "multiclass" else 2, shape, generator=generator)
    void = torch.rand(shape, generator=generator) < share_of_void
    target = target.where(~void, IGNORE)
    void = void if kind == "multilabel" else void[:, None].expand_as(logits)
    return logits.to(dtype), target, void


def weights_of(kind):
    return torch.tensor([0.5, 2.0] if kind == "binary" else [0.5, 1.0, 2.0, 0.1], dtype=torch.float64)


def make_loss(name, kind):
    """Returns the loss of a name in NAMES."""
    word = name.split()[-1]
    return segmentation_loss(
        word,
        weights_of(kind) if "weighted" in name else None,
        label_smoothing=0.1 if "smooth" in name else 0.0,
    )


def value_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad

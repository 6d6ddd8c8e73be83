"""The losses once more, pixel by pixel in plain Python and float64, from the definitions and in another form."""

from __future__ import annotations

import itertools
import math

import numpy as np

IGNORE = 255


def probabilities(pixel, exclusive):
    if exclusive:
        powers = [math.exp(x - max(pixel)) for x in pixel]
        return [power / sum(powers) for power in powers]
    return [1 / (1 + math.exp(-x)) for x in pixel]


def read(logits, target):
    """Returns whether classes exclude each other, and (logits, labels) of each pixel: 0 or 1 by class, None if void."""
    logits, target = logits.double().numpy(), target.numpy()
    classes = logits.shape[1]
    exclusive = classes > 1 and target.ndim == 3
    pixels = []
    for b, h, w in np.ndindex(logits.shape[0], *logits.shape[2:]):
        if exclusive:
            t = target[b, h, w]
            labels = [None if t == IGNORE else int(t == c) for c in range(classes)]
        else:
            column = target[b, :, h, w] if target.ndim == 4 else [target[b, h, w]]
            labels = [None if t == IGNORE else int(t) for t in column]
        pixels.append((list(logits[b, :, h, w]), labels))
    return exclusive, pixels


def weighted_mean(pairs):
    mass = sum(w for _, w in pairs)
    return sum(x * w for x, w in pairs) / mass if mass else 0.0


def entropy_parts(logits, target, weights, softmax, smoothing=0.0):
    """Returns (cross entropy, probability of the right answer, weight) of each pixel, or of each label of one."""
    exclusive, pixels = read(logits, target)
    parts = []
    for x, labels in pixels:
        if exclusive and softmax:
            if None in labels:
                continue
            p, c = probabilities(x, True), labels.index(1)
            classes = len(p)
            ce = sum(
                -math.log(p[k]) * ((1 - smoothing) * (k == c) * weights[c] + smoothing / classes * weights[k])
                for k in range(classes)
            )
            parts.append((ce, p[c], weights[c]))
            continue
        for k, (p, label) in enumerate(zip(probabilities(x, False), labels, strict=True)):
            if label is None:
                continue
            weight = weights[label] if len(labels) == 1 else weights[k]
            wish = label * (1 - smoothing) + smoothing / 2
            ce = -wish * math.log(p) - (1 - wish) * math.log(1 - p)
            parts.append((ce * weight, p if label else 1 - p, weight))
    return parts


def cross_entropy(logits, target, weights, smoothing=0.0, softmax=True):
    parts = entropy_parts(logits, target, weights, softmax, smoothing)
    mass = sum(w for _, _, w in parts)
    return sum(ce for ce, _, _ in parts) / mass if mass else 0.0


def focal(logits, target, weights, gamma=2.0, softmax=True):
    parts = entropy_parts(logits, target, weights, softmax)
    return weighted_mean([((1 - p) ** gamma * -math.log(p), w) for _, p, w in parts])


def ohem(logits, target, weights):
    parts = sorted(entropy_parts(logits, target, weights, True), key=lambda part: part[1])
    least = math.ceil(len(parts) / 16)
    kept = [(-math.log(p), w) for i, (_, p, w) in enumerate(parts) if i < least or p < 0.7]
    return weighted_mean(kept)


def by_class(logits, target, loss):
    """Returns the mean of loss(scores, labels, logits) over the classes that have a label 1."""
    exclusive, pixels = read(logits, target)
    losses = []
    for c in range(logits.shape[1]):
        own = [(probabilities(x, exclusive)[c], labels[c], x[c]) for x, labels in pixels if labels[c] is not None]
        if any(label for _, label, _ in own):
            losses.append(loss(own, exclusive))
    return sum(losses) / len(losses) if losses else 0.0


def tversky(logits, target, alpha=0.3, beta=0.7, gamma=1.0):
    def loss(own, _):
        hits = sum(p for p, label, _ in own if label)
        false = sum(p for p, label, _ in own if not label)
        missed = sum(1 - p for p, label, _ in own if label)
        return (1 - hits / (hits + alpha * false + beta * missed)) ** gamma

    return by_class(logits, target, loss)


def lovasz(logits, target):
    """By the Lovász extension's integral: the Jaccard loss of "errs more than t", over all t > 0.

    The Jaccard loss of a set of wrong pixels M is |M| / |wanted or in M|.
    """

    def loss(own, exclusive):
        errors = [abs(label - p) if exclusive else max(0.0, 1 - x * (2 * label - 1)) for p, label, x in own]
        wanted = {i for i, (_, label, _) in enumerate(own) if label}
        levels = sorted({0.0, *errors})
        total = 0.0
        for low, high in itertools.pairwise(levels):
            wrong = {i for i, error in enumerate(errors) if error > low}
            total += (high - low) * len(wrong) / len(wanted | wrong)
        return total

    return by_class(logits, target, loss)


LOSSES = {
    "ce": cross_entropy,
    "bce": lambda x, t, w, s=0.0: cross_entropy(x, t, w, s, softmax=False),
    "focal": focal,
    "bfocal": lambda x, t, w: focal(x, t, w, softmax=False),
    "ohem": ohem,
    "dice": lambda x, t, _: tversky(x, t, 0.5, 0.5),
    "jaccard": lambda x, t, _: tversky(x, t, 1.0, 1.0),
    "tversky": lambda x, t, _: tversky(x, t),
    "focal-tversky": lambda x, t, _: tversky(x, t, gamma=0.75),
    "lovasz": lambda x, t, _: lovasz(x, t),
}

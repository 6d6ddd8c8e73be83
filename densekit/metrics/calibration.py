"""Whether a network's probabilities mean what they say: ECE, Brier score, risk by coverage, temperature."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.errors import ConfigError, DataError
from densekit.metrics.labels import as_array, as_labels, check_classes, check_labels, plain

# Confidences are ranked by the float32 bits of 1 - confidence, cut to 10 bits of fraction: steps of 0.1 % of the doubt,
# from 2**-24 (the smallest doubt that float32 knows beside 1) to 1. Fixed counts, whatever the number of pixels.
CUT = 13
FIRST = (127 - 24) << (23 - CUT)
RANKS = (24 << (23 - CUT)) + 2  # and one for a doubt of 0
EXACT = 256  # harmonic numbers up to here are summed, and taken from the series beyond
MAX_PIXELS = 200_000
COLDEST, HOTTEST = 0.01, 100.0


class Calibration:
    """Counts of how sure a network was and how often it was right, over a whole data set.

    Confidence is the largest probability of a pixel, its prediction the class that has it. Memory does not grow with
    the pixels seen. All state adds up over processes.

    Args:
        num_classes: C; 2 for a binary task.
        ignore_index: A label whose pixels count nowhere.
        bins: Number of equal steps of confidence in `ece` and `curve`.

    Raises:
        ConfigError: fewer than 2 classes, an `ignore_index` that is one of them, or no bin.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017 (ECE; bins closed above); Brier, 1950;
        Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017 (risk and coverage).
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None, bins: int = 15) -> None:
        check_classes(num_classes, ignore_index)
        if bins < 1:
            raise ConfigError(f"bins is {bins}; expected at least 1")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.bins = bins
        self.pixels: NDArray[np.int64] = np.zeros(bins, np.int64)  # in each bin
        self.right: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.confidence: NDArray[np.float64] = np.zeros(bins)
        self.squares: float = 0.0  # of the difference between probabilities and the truth
        self.ranked: NDArray[np.int64] = np.zeros((2, RANKS), np.int64)  # surest first: pixels, wrong ones

    def update(self, probabilities: Any, target: Any) -> None:
        """Counts one picture.

        Args:
            probabilities: (C, H, W) floats in [0, 1] that add up to 1 over C, array or tensor; or, with 2 classes,
                (1, H, W) of the foreground alone.
            target: (H, W) labels.

        Raises:
            DataError: other shapes, no floats, no probabilities, a label that is no class; nothing is counted then.
        """
        scores, labels = _pixels(probabilities, target, self.num_classes, self.ignore_index, "probabilities")
        if scores.shape[0] == 1:
            scores = np.concatenate([1 - scores, scores])
        if not labels.size:
            return
        lowest, highest = float(scores.min()), float(scores.max())
        if not (lowest >= -1e-6 and highest <= 1 + 1e-6):  # also refuses NaN
            raise DataError(
                f"found probabilities from {lowest:.6g} to {highest:.6g}; expected 0 to 1 (apply a softmax)"
            )
        total = scores.sum(axis=0)
        if abs(total - 1).max() > 0.02:  # half precision with 150 classes stays below
            worst = float(total[abs(total - 1).argmax()])
            raise DataError(f"found probabilities that add up to {worst:.6g}; expected 1 (apply a softmax)")
        own = np.take_along_axis(scores, labels[None].astype(np.intp), axis=0)[0]
        sure = scores.max(axis=0)
        is_right = own == sure
        ties = np.count_nonzero(scores == sure, axis=0) > 1  # they go to the first class; argmax for all is far slower
        is_right[ties] = scores[:, ties].argmax(axis=0) == labels[ties]
        sure = np.clip(sure, 0, 1)
        self.squares += float((np.square(scores).sum(axis=0, dtype=np.float64) - 2 * own + 1).sum(dtype=np.float64))
        # in double precision, since float32 of a bin's edge times `bins` may fall on either side of a whole number
        place = np.clip(np.ceil(sure.astype(np.float64) * self.bins) - 1, 0, self.bins - 1).astype(np.intp)
        self.pixels += np.bincount(place, minlength=self.bins)
        self.right += np.bincount(place[is_right], minlength=self.bins)
        self.confidence += np.bincount(place, weights=sure, minlength=self.bins)
        rank = _ranks(sure)
        self.ranked[0] += np.bincount(rank, minlength=RANKS)
        self.ranked[1] += np.bincount(rank[~is_right], minlength=RANKS)

    def merge(self, other: Calibration) -> None:
        """Adds the counts of `other`, such as those of another process.

        Raises:
            ConfigError: `other` has other classes or bins, or ignores another label.
        """
        for name in ("num_classes", "ignore_index", "bins"):
            if getattr(self, name) != getattr(other, name):
                raise ConfigError(
                    f"cannot merge calibration counts with {name} {getattr(other, name)} "
                    f"into some with {name} {getattr(self, name)}"
                )
        self.pixels += other.pixels
        self.right += other.right
        self.confidence += other.confidence
        self.squares += other.squares
        self.ranked += other.ranked

    @property
    def valid_pixels(self) -> int:
        """The number of pixels counted, ignored ones left out."""
        return int(self.pixels.sum())

    def ece(self) -> float:
        """Returns the expected calibration error in [0, 1]: mean |accuracy - confidence| of bins, weighted by pixels.

        NaN before the first pixel.
        """
        gaps = abs(self.right - self.confidence)
        return float(gaps.sum()) / self.valid_pixels if self.valid_pixels else math.nan

    def brier(self) -> float:
        """Returns the mean squared difference from the truth, summed over classes: 0 (best) to 2; NaN before pixels.

        scikit-learn halves it for two classes, and looks at one of them, which is the same.
        """
        return self.squares / self.valid_pixels if self.valid_pixels else math.nan

    def curve(self) -> NDArray[np.float64]:
        """Returns the points of a reliability diagram: (n, 3), mean confidence, accuracy, share of pixels, of each bin.

        Bins without a pixel are left out.
        """
        kept = self.pixels > 0
        pixels = self.pixels[kept]
        points = (self.confidence[kept] / pixels, self.right[kept] / pixels, pixels / max(self.valid_pixels, 1))
        return np.stack(points, axis=1)

    def risk_coverage(self, points: int = 101) -> NDArray[np.float64]:
        """Returns the share of wrong pixels among the surest ones: (points, 2), coverage from 0 to 1, risk at most 1.

        The risk at coverage 0 is that of the surest pixels that cannot be told apart. Empty before the first pixel.
        """
        pixels, wrong = (np.cumsum(counts) for counts in self.ranked)
        if not self.valid_pixels:
            return np.empty((0, 2))
        kept = self.ranked[0] > 0
        pixels, wrong = pixels[kept], wrong[kept]
        coverage = np.linspace(0, 1, points)
        # wrong pixels spread evenly over those of equal rank, as they would on average in any order
        within = np.interp(coverage[1:] * self.valid_pixels, np.append(0, pixels), np.append(0, wrong))
        risk = np.append(wrong[0] / pixels[0], within / (coverage[1:] * self.valid_pixels))
        return np.stack([coverage, risk], axis=1)

    def aurc(self) -> float:
        """Returns the area under the risk-coverage curve: the mean risk over keeping the surest 1, 2, .. all pixels.

        Pixels of equal rank (doubts within 0.1 % of each other) count by the mean over their orders. NaN before pixels.
        """
        if not self.valid_pixels:
            return math.nan
        kept = self.ranked[0] > 0
        pixels, wrong = self.ranked[:, kept].astype(np.float64)
        before, wrong_before = np.cumsum(pixels) - pixels, np.cumsum(wrong) - wrong
        share = wrong / pixels
        # sum over j = 1 .. n of (E + j e / n) / (N + j), with N and E pixels and wrong ones before
        spread = _harmonic(before + pixels) - _harmonic(before)
        return float((wrong + (wrong_before - before * share) * spread).sum()) / self.valid_pixels

    def figures(self) -> dict[str, Any]:
        """Returns every figure and the curves, ready for JSON: None for NaN."""
        return {
            "ece": plain(self.ece()),
            "ece_bins": self.bins,
            "brier": plain(self.brier()),
            "aurc": plain(self.aurc()),
            "calibration_curve": plain(self.curve()),
            "risk_coverage_curve": plain(self.risk_coverage()),
        }


def softmax(logits: Any, temperature: float = 1.0) -> NDArray[np.float64]:
    """Returns the probabilities of logits (C, ...) at a temperature, float64; of (1, ...), the foreground's sigmoid."""
    scores = as_array(logits).astype(np.float64) / temperature
    if scores.shape[0] == 1:
        return np.asarray(0.5 * (1 + np.tanh(scores / 2)))  # a sigmoid that cannot overflow
    scores = np.exp(scores - scores.max(axis=0))
    return np.asarray(scores / scores.sum(axis=0))


def fit_temperature(
    pictures: Iterable[tuple[Any, Any]], *, ignore_index: int | None = None, max_pixels: int = MAX_PIXELS
) -> float:
    """Returns the T for which softmax(logits / T) has the least negative log-likelihood, in [0.01, 100].

    Above 1 the network was too sure. Predictions stay what they are. Fit it on validation pictures, never on the ones
    that are scored. At most `max_pixels` pixels are kept: those with the smallest hash of their running number among
    the valid ones, so a random sample that is the same each time, and every pixel if there are no more.

    Args:
        pictures: (logits, target) one after the other: (C, H, W) floats and (H, W) labels, arrays or tensors.
            Logarithms of probabilities serve as logits; (1, H, W) are the logits of a foreground.
        ignore_index: A label whose pixels are left out.
        max_pixels: Pixels kept; 200,000 of 11 classes are 18 MB.

    Raises:
        DataError: no valid pixel, or what `Calibration.update` refuses of shapes, types and labels.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.
    """
    kept: list[tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.intp]]] = []
    limit, seen, held = np.uint64(2**64 - 1), 0, 0
    for logits, target in pictures:
        scores, labels = _pixels(logits, target, None, ignore_index, "logits")
        if not np.isfinite(scores).all():
            raise DataError("found logits that are not finite; clip logarithms of probabilities, such as at -50")
        key = _hash(np.arange(seen, seen + labels.size, dtype=np.uint64))
        seen += labels.size
        chosen = key <= limit
        kept.append((key[chosen], scores[:, chosen].T.astype(np.float64), labels[chosen].astype(np.intp)))
        held += int(chosen.sum())
        if held > 2 * max_pixels:
            kept = [_smallest(kept, max_pixels)]
            limit, held = kept[0][0].max(), max_pixels
    if not held:
        raise DataError("found no valid pixel to fit a temperature on; check the masks and ignore_index")
    _, scores, labels = _smallest(kept, max_pixels)
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    return _fit(scores, labels)


def _pixels(
    scores: Any, target: Any, num_classes: int | None, ignore_index: int | None, name: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the scores (C, n) and labels (n,) of the valid pixels of a picture."""
    values, labels = as_array(scores), as_labels(target, "target")
    if values.dtype.kind != "f":
        raise DataError(f"found {name} of {values.dtype}; expected floats")
    channels = num_classes or (values.shape[0] if values.ndim else 0)
    if values.shape not in ((channels, *labels.shape), (1, *labels.shape) if channels == 2 else None):
        shapes = f"{name} of shape {values.shape} and labels of shape {labels.shape}"
        raise DataError(f"found {shapes}; expected ({num_classes or 'C'}, H, W) and (H, W)")
    values, labels = values.reshape(values.shape[0], -1), labels.reshape(-1)
    check_labels(np.zeros(0, np.uint8), labels, max(channels, 2), ignore_index)
    if ignore_index is not None:
        valid = labels != ignore_index
        if not valid.all():
            values, labels = values.take(np.flatnonzero(valid), axis=1), labels[valid]
    return values, labels


def _ranks(sure: NDArray[Any]) -> NDArray[np.intp]:
    """Returns 0 for a confidence of 1, and more with each step of doubt."""
    doubt = (1 - sure.astype(np.float64)).astype(np.float32)
    return np.maximum((doubt.view(np.int32) >> CUT) - FIRST + 1, 0).astype(np.intp)


def _harmonic(number: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns 1 + 1/2 + .. + 1/n of each whole number, to 1e-15 relative."""
    table = np.append(0, np.cumsum(1 / np.arange(1, EXACT + 1)))
    large = np.maximum(number, EXACT)
    series = np.log(large) + np.euler_gamma + 1 / (2 * large) - 1 / (12 * large**2) + 1 / (120 * large**4)
    return np.where(number <= EXACT, table[np.minimum(number, EXACT).astype(np.intp)], series)


def _hash(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns 64 well-mixed bits of each number. Source: Steele et al., SplitMix, 2014."""
    mixed = (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _smallest(
    kept: list[tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.intp]]], number: int
) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.intp]]:
    """Returns the `number` pixels of the smallest keys."""
    key, scores, labels = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    if len(key) > number:
        chosen = np.argpartition(key, number - 1)[:number]
        key, scores, labels = key[chosen], scores[chosen], labels[chosen]
    return key, scores, labels


def _fit(scores: NDArray[np.float64], labels: NDArray[np.intp]) -> float:
    """Returns the temperature of the least mean negative log-likelihood.

    In b = 1 / T it is convex: its slope, mean(expected score - score of the label), rises with b, and its root is found
    by halving the interval of log b, to 1e-9 relative.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1).mean()
    shifted = scores - scores.max(axis=1, keepdims=True)

    def slope(sharpness: float) -> float:
        weights = np.exp(sharpness * shifted)
        return float(((weights * scores).sum(axis=1) / weights.sum(axis=1)).mean() - own)

    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    if not shifted.any():  # all scores of a pixel equal: every temperature is as good
        return 1.0
    if slope(math.exp(high)) <= 0:  # every pixel right: no temperature is cold enough
        return COLDEST
    if slope(math.exp(low)) > 0:  # worse than chance: none is hot enough
        return HOTTEST
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)

"""What an evaluation hands to a report: figures, pictures, and the conditions they were measured under."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Pictures = dict[str, NDArray[np.uint8]]


@dataclass
class Row:
    """One picture of an evaluation.

    Attributes:
        name: of its file; foreign text, so a report escapes it.
        figures: key -> value, such as {"psnr_y": 34.2, "ssim_y": 0.93}; None or NaN where it is not defined.
        error: why there are no figures; empty for a picture that was measured.
        pictures: makes what there is to see, only when it is asked for, since a data set does not fit into memory.
            sr: "lr", "bicubic", "sr", "hr", "error"; seg: "image", "prediction", "target", "wrong"; all (H, W, 3)
            uint8 RGB, and all but "lr" of one size.
    """

    name: str
    figures: dict[str, float | None]
    error: str = ""
    pictures: Callable[[], Pictures] | None = None


@dataclass
class Evaluation:
    """A model's figures on one data set, and what they were measured with.

    Attributes:
        title: what was measured on what, such as "rdn-tiny-x2 on set5".
        task: "sr" or "seg".
        metric: the key of the headline figure; pictures are ranked by it.
        rows: one for each picture, failed ones too, in the order of the data set.
        summary: key -> figure of the whole data set, `metric` among them.
        conditions: what it was measured with, in the order to show: "protocol" first, then model, data, command,
            environment, hashes.
        classes: names of the classes, for seg.
        palette: the colour of each class, (R, G, B) 0..255.
        matrix: confusion matrix (classes, classes) of pixel counts; rows are the target, columns the prediction.
        per_class: key -> one value a class, such as {"iou": [0.9, None]}; None for a class that does not occur.
        curves: name -> points (x, y), such as "calibration" (confidence, accuracy) or "risk-coverage"; of a training
            run "loss" or "lr" (step, value).
    """

    title: str
    task: str
    metric: str
    rows: list[Row]
    summary: dict[str, float | None]
    conditions: dict[str, str]
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    matrix: NDArray[np.int64] | None = None
    per_class: dict[str, list[float | None]] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.task in ("sr", "seg"), self.task
        assert self.matrix is None or self.matrix.shape == 2 * (len(self.classes),), self.matrix.shape
        assert all(len(values) == len(self.classes) for values in self.per_class.values()), self.per_class

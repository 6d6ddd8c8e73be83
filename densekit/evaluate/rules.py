"""What a segmentation protocol asks of the masks at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.errors import ConfigError
from densekit.image import read_mask
from densekit.metrics import SegProtocol, find_split, seg_protocol, split_hash

VOID = 255


@dataclass(frozen=True)
class Rule:
    """A protocol for masks of so many classes.

    Attributes:
        protocol: as in `densekit.metrics`.
        num_classes: ids are 0 .. num_classes - 1.
        ignore_index: label that counts nowhere.
    """

    protocol: SegProtocol
    num_classes: int
    ignore_index: int

    @property
    def metric(self) -> str:
        """The headline figure: "iou" of the foreground, or "miou"."""
        return self.protocol.headline

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, numbers where the protocol has none."""
        return self.protocol.classes or tuple(f"class {index}" for index in range(self.num_classes))

    def read_target(self, path: Path) -> NDArray[Any]:
        """Returns the class numbers of a mask file, (H, W), of a size that the protocol allows.

        Ids of the data set's own become class numbers, but in Cityscapes' `*_labelTrainIds.png`, which hold those.

        Raises:
            ImageError: it cannot be read.
            DataError: another size.
        """
        ids = read_mask(path)
        self.protocol.check_size(ids.shape[0], ids.shape[1], path)
        if not self.protocol.train_ids or path.stem.endswith("TrainIds"):
            return ids
        table = np.full(max(256, int(ids.max()) + 1), self.ignore_index, np.int64)
        for own, number in self.protocol.train_ids.items():
            table[own] = number
        return table[ids]

    def split_of(self, paths: Sequence[Path]) -> str:
        """Returns which known split these pictures are, else a hash of their names."""
        known = find_split(paths)
        return " ".join(known) if known else f"names {split_hash(paths)[:16]}"


def find_rule(protocol: str | None, num_classes: int | None, ignore_index: int | None) -> Rule:
    """Returns a protocol's rule.

    Args:
        protocol: its name; None takes "binary" for two classes, else "dataset-iou".
        num_classes: None takes that of the protocol.
        ignore_index: None takes that of the protocol, or 255.

    Raises:
        ConfigError: an unknown protocol, one for another number of classes, or no such number.
    """
    rule = seg_protocol(protocol or ("binary" if num_classes == 2 else "dataset-iou"))
    count = num_classes or len(rule.classes)
    if not count:
        raise ConfigError("the number of classes is not known; give --num-classes N (num_classes=N)")
    if not 2 <= count <= 256:
        raise ConfigError(f"num_classes {count}: expected 2 to 256; a binary task has 2")
    rule.check_classes(count)
    if ignore_index is None:
        ignore_index = VOID if rule.ignore_index is None else rule.ignore_index
    return Rule(rule, count, ignore_index)

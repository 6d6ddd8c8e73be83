"""Segmentation, as the training loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densekit import ranks
from densekit.cards import Card
from densekit.config import Config
from densekit.datasets.masks import MaskedImages, pair_masks
from densekit.datasets.pictures import median_frequency_weights
from densekit.datasets.split import split_by_name
from densekit.datasets.transforms import Augment
from densekit.errors import ConfigError, DataError
from densekit.files import printable
from densekit.losses import IGNORE, Loss, segmentation_loss
from densekit.metrics import ConfusionMatrix, check_camvid_split, seg_protocol
from densekit.tasks import Sample
from densekit.tasks.adversary import Adversary
from densekit.tasks.common import (
    batches,
    check_network,
    fingerprint,
    new_model,
    rebuilding,
    scored_on,
    sources,
    trained_on,
)


class Segmentation:
    """Images with masks, a loss that ignores void, IoU from one confusion matrix.

    A network with one class is binary: its logit is the foreground's, and the figure is the foreground's IoU.
    """

    adversary: Adversary | None = None

    def __init__(self, config: Config) -> None:
        self.config = config
        data, train = config.data, config.train
        self.num_classes: int = check_classes(config)
        self.binary: bool = self.num_classes == 1
        self.ids: int = 2 if self.binary else self.num_classes
        self.metric = "iou" if self.binary else "miou"
        self.protocol: str = config.eval.protocol or ("binary" if self.binary else "dataset-iou")
        loss = train.loss or ("bce+dice" if self.binary else "ce")
        weights = None if train.class_weights == "none" else torch.ones(self.ids)
        segmentation_loss(loss, weights, label_smoothing=train.label_smoothing)  # finds what does not go together
        check_network(config, 1, self.num_classes)
        check_class_map(config, self.ids)
        augment = Augment(data.augment, train.crop_size, train.seed, focus=data.focus, focus_share=data.focus_share)
        pairs = pair_masks(data.train, data.masks)
        val = pair_masks(data.val, data.val_masks) if data.val else []
        if data.val_share:
            pairs, val = split_by_name(pairs, data.val_share)
        load = partial(MaskedImages, class_map=data.class_map, cache=data.cache)
        self.data: MaskedImages = load(pairs, self.ids, data.ignore_index, augment)
        self.val: MaskedImages = load(val, self.ids, data.ignore_index)
        check_protocol(self.protocol, self.num_classes, self.data, self.val)
        self.fingerprint: str = fingerprint([*self.data.paths, *self.val.paths])
        self.criterion: Loss = segmentation_loss(loss, self._class_weights(), label_smoothing=train.label_smoothing)

    def _class_weights(self) -> Tensor | None:
        kind, data = self.config.train.class_weights, self.config.data
        own, around = self.data.class_pixels(self.ids)
        if np.count_nonzero(own) < 2:
            raise DataError(
                f"{', '.join(map(printable, data.masks or data.train))}: masks of class {own.argmax()} and void "
                f"(data.ignore_index={data.ignore_index}) alone; write class numbers 0..{self.ids - 1} into them, or "
                "set data.class_map to the class of each colour"
            )
        if kind == "none":
            return None
        weights = median_frequency_weights(own, around)
        return torch.from_numpy(np.sqrt(weights) if kind == "sqrt-median-freq" else weights).float()

    def build_model(self) -> nn.Module:
        return new_model(self.config)

    def describe_data(self) -> str:
        own, _ = self.data.class_pixels(self.ids)
        shares = ", ".join(f"{share:.1%}" for share in own / own.sum())
        return (
            f"data: {len(self.data)} images with masks to train on, {len(self.val)} to evaluate on; shares of the "
            f"classes: {shares}"
        )

    def train_batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(self.data, self.config, start)

    def sources(self, draws: Iterable[int]) -> list[Path]:
        return sources(self.data, self.config, draws)

    def loss(self, net: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        images, ids = batch
        return self.criterion(net(images.float() / 255).float(), ids.long())

    def evaluate(self, net: nn.Module) -> dict[str, float]:
        if not len(self.val):
            return {}
        matrix = ConfusionMatrix(self.ids, ignore_index=IGNORE)
        for index in range(ranks.rank(), len(self.val), ranks.count()):
            image, ids = self.val[0, index]
            matrix.update(self._predict(net, image), ids)
        matrix.matrix = sum(ranks.gathered(matrix.matrix), start=np.zeros_like(matrix.matrix))
        figures = {"accuracy": matrix.accuracy()}
        if self.binary:
            return {"iou": float(matrix.iou()[1]), **figures}
        return {"miou": matrix.miou(), **figures}

    def samples(self, net: nn.Module, start: int = 0) -> Iterator[Sample]:
        for index in range(start, len(self.val)):
            image, ids = self.val[0, index]
            prediction = self._predict(net, image).cpu().numpy()
            yield Sample(self.val.origins[index], image.permute(1, 2, 0).numpy(), prediction, ids.numpy())

    def _predict(self, net: nn.Module, image: Tensor) -> Tensor:
        """Returns the class numbers of an image (3, H, W) uint8 as (H, W) uint8, where the network is."""
        logits = net(image[None].to(next(net.parameters()).device).float() / 255)[0]
        return (logits[0] > 0).byte() if self.binary else logits.argmax(dim=0).byte()

    def card(self, step: int, metrics: dict[str, Any]) -> Card:
        config = self.config
        data, licence = trained_on(config)
        return Card(
            task="seg",
            model=config.model.name,
            arguments=rebuilding(config),
            classes=tuple(config.data.classes),
            palette=tuple((r, g, b) for r, g, b in config.data.palette),
            step=step,
            metrics={**metrics, "protocol": self.protocol, "data": scored_on(config)} if metrics else {},
            data=data,
            licence=licence,
            bn_mode=config.eval.bn_mode,
        )


def check_classes(config: Config) -> int:
    """Returns the network's number of classes, 1 if binary.

    Raises:
        ConfigError: missing, out of range, or not that of `data.classes`.
    """
    number, names = config.model.kwargs.get("num_classes"), config.data.classes
    if type(number) is not int or not 1 <= number <= 255:
        hint = f", such as {len(names) if len(names) > 2 else 1} for your data.classes" if names else ""
        raise ConfigError(
            f"model.num_classes={number}: task seg needs the number of classes, 1 to 255{hint}; 1 means foreground "
            "against background"
        )
    if names and len(names) != max(number, 2):
        raise ConfigError(
            f"data.classes: has {len(names)} names, but model.num_classes={number} needs {max(number, 2)}"
            + (" (background, foreground)" if number == 1 else "")
        )
    return number


def check_class_map(config: Config, ids: int) -> None:
    """Passes a class map whose numbers are classes, 0..ids-1, or void.

    Raises:
        ConfigError: one is neither.
    """
    data = config.data
    for color, label in data.class_map.items():
        if label >= ids and label != data.ignore_index:
            raise ConfigError(
                f"data.class_map: {color} is class {label}, but there are {ids} classes (0..{ids - 1}), and void is "
                f"data.ignore_index={data.ignore_index}"
            )


def check_protocol(protocol: str, num_classes: int, train: MaskedImages, val: MaskedImages) -> None:
    """Passes a protocol that goes with the network's classes and the validation pictures.

    Raises:
        ConfigError: it does not go with the classes.
        DataError: it does not go with a picture, or scores frames that are seen in training.
    """
    rule = seg_protocol(protocol)
    if (protocol == "binary") != (num_classes == 1) or len(rule.classes) not in (0, max(num_classes, 2)):
        raise ConfigError(f"eval.protocol={protocol}: does not go with model.num_classes={num_classes}")
    for path, (_, ids) in zip(val.origins, val.samples, strict=True):
        rule.check_size(ids.shape[0], ids.shape[1], path)
    if protocol == "camvid11-360x480":
        check_camvid_split(train.origins, val.origins)

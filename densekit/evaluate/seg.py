"""How well a segmentation agrees with masks, by a named protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densekit.datasets.partners import Partners
from densekit.datasets.pictures import list_pictures
from densekit.errors import ConfigError, DataError
from densekit.evaluate.common import Follow, Silent, bn_mode_of, conditions_of, count_of, failed, name_of, tiles_of
from densekit.evaluate.measures import Measures
from densekit.evaluate.rules import Rule, find_rule
from densekit.evaluate.sets import set_name
from densekit.evaluate.statistics import with_batch_statistics
from densekit.evaluate.views import views_seg
from densekit.files import printable
from densekit.image import read_image, read_mask
from densekit.metrics import fit_temperature
from densekit.predict.inputs import to_rgb8, to_unit
from densekit.predict.overlay import PALETTE
from densekit.predict.segment import classes_of
from densekit.report import Evaluation, Row

if TYPE_CHECKING:
    from densekit.predict import Segmenter
    from densekit.predict.tiles import Tile

Ids = NDArray[Any]


def evaluate_seg(
    model: Segmenter | None,
    images: str | Path | None,
    masks: str | Path,
    *,
    predictions: str | Path | None = None,
    protocol: str | None = None,
    num_classes: int | None = None,
    ignore_index: int | None = None,
    calibration: bool = False,
    held_out: tuple[str | Path, str | Path] | None = None,
    boundary: int | None = None,
    bn: str | None = None,
    batch_size: int = 1,
    tile: Tile = "auto",
    conditions: Mapping[str, str] | None = None,
    follow: Follow | None = None,
) -> Evaluation:
    """Returns the figures of a model, or of a folder of predicted masks, on a folder of masks.

    Figures of the set are those of all its pixels together. A picture that cannot be read or does not fit has a row
    with its error, and its pixels count nowhere.

    Args:
        model: as from `densekit.load`; None where `predictions` is given.
        images: a folder of pictures; with predictions only to look at.
        masks: a folder of masks of class numbers, paired by name.
        predictions: a folder of masks that are there already, paired by name.
        protocol: see `densekit.evaluate.rules`; by default "binary" for two classes, else "dataset-iou".
        num_classes: of predictions; a model says its own.
        ignore_index: a label that counts nowhere; by default the protocol's, or 255.
        calibration: also compare the model's probabilities with how often it is right.
        held_out: folders of other pictures and their masks, on which a temperature is fitted; the probabilities at that
            temperature are compared as well.
        boundary: also score the outlines, to this many pixels.
        bn: "batch" uses the statistics of each batch, so that a result depends on its neighbours; None, or
            "running", those that the model has.
        batch_size: for "batch": this many pictures of one size, as they follow each other, go through together.
        tile: as for `Segmenter.predict`.
        conditions: further ones to record, such as the model's file and the command.
        follow: is told how it proceeds.

    Raises:
        ConfigError: a wrong protocol or number of classes, neither or both of model and predictions, tiles or
            calibration where they cannot be, or a model that needs `bn="batch"` without it.
        DataError: a folder that is not there, or a held-out picture that cannot be used.
    """
    calibration = calibration or held_out is not None
    if (model is None) == (predictions is None) or (model is not None and images is None):
        raise ConfigError("give either a model and a folder of images, or a folder of predictions")
    if model is None and (calibration or bn):
        raise ConfigError(f"{'calibration' if calibration else 'bn'} needs a model; predicted masks say only classes")
    rule = find_rule(protocol, len(model.classes) if model else num_classes, ignore_index)
    mode = ""
    if model is not None:
        if num_classes not in (None, len(model.classes)):
            raise ConfigError(f"num_classes {num_classes}: the model has {len(model.classes)}; leave it out")
        model, mode = _with_norms(model, bn, tile)
    folder = Path(images if model is not None and images is not None else masks)
    paths = list_pictures([folder])
    source = (
        Prediction(model, Partners(masks, masks=True), "off" if mode == "batch" else tile)
        if model is not None
        else Partners(predictions or "", masks=True)
    )
    temperature = _fitted(source, held_out, folder, rule) if isinstance(source, Prediction) and held_out else None
    measures = Measures(rule, calibration=calibration, boundary=boundary, temperature=temperature)
    evaluator = SegEvaluator(folder, source, rule, measures, Path(images) if images is not None else None)
    follow = follow or Silent()
    known = {"protocol": rule.protocol.name, "bn_mode": mode, "ignore_index": str(rule.ignore_index)}
    follow.start(paths, {**known, "resize": "", "scale": ""})  # as for super-resolution, so that lines are alike
    rows = list(evaluator.rows(paths, batch_size if mode == "batch" else 1, follow))
    evaluator.check_foreground(masks)
    given = dict(conditions or {})
    subject = str(predictions) if model is None else given.get("model", model.card.model)
    name = set_name(folder)
    return Evaluation(
        title=f"{subject} on {name}",
        task="seg",
        metric=rule.metric,
        rows=rows,
        summary=measures.summary() if any(not row.error for row in rows) else {rule.metric: None},
        conditions=conditions_of(
            {
                "protocol": rule.protocol.name,
                "protocol_means": rule.protocol.description,
                "set": name,
                "split": rule.split_of(paths),
                "bn_mode": mode,
                "pictures": count_of(rows),
                "ignore_index": str(rule.ignore_index),
                **measures.conditions(),
                "temperature": f"{temperature:.4f}, fitted on {held_out[0]}" if temperature and held_out else "",
            },
            model,
            given,
            {
                "batch_size": str(batch_size) if mode == "batch" else "",
                "predictions": str(predictions or ""),
                "tile": tiles_of(evaluator.tiles),
                "data": str(folder),
                "masks": str(masks),
                "notes": "; ".join(dict.fromkeys(evaluator.notes)),
            },
        ),
        classes=model.classes if model is not None else rule.classes,
        palette=evaluator.palette,
        matrix=measures.total.matrix,
        per_class=measures.per_class(),
        curves=measures.curves(),
    )


def _with_norms(model: Segmenter, bn: str | None, tile: Tile) -> tuple[Segmenter, str]:
    """Returns the model with the statistics that were asked for, and their name.

    Raises:
        ConfigError: they cannot be had, or only batch statistics can and were not asked for.
    """
    from densekit.predict import Segmenter

    own = bn_mode_of(model)
    if bn not in (None, "running", "batch"):
        raise ConfigError(f"bn {printable(bn)!r}: expected running or batch")
    if bn != "batch":
        if own == "batch":
            raise ConfigError(
                "the model was trained on the statistics of its batches and has no running ones (bn_mode batch); "
                "recalibrate it with densekit bn recalibrate, or ask for --bn batch"
            )
        return model, own
    if tile not in ("auto", "off"):
        raise ConfigError(f"tile {tile} with bn batch: each window would have statistics of its own; leave --tile out")
    net = with_batch_statistics(model.net)
    card = dataclasses.replace(model.card, bn_mode="batch")
    return Segmenter(net, card, device=str(model.device), precision=model.precision), "batch"


@dataclass
class Prediction:
    """A model, the masks of its pictures and how it is run."""

    model: Segmenter
    masks: Partners
    tile: Tile


@dataclass
class Sample:
    """A picture ready to be scored."""

    path: Path
    target: Ids
    image: Tensor | None = None  # (1, C, H, W) in 0..1
    ids: Ids | None = None


@dataclass
class SegEvaluator:
    """Scores one picture, or batch of pictures, after the other.

    Args:
        folder: of the pictures, or of the masks where predictions are scored.
        source: makes the predictions, or holds them.
        rule: of the protocol.
        measures: count.
        images: where pictures to look at are.

    Attributes:
        tiles: "whole" or the side of each picture's windows.
        notes: what a reader should know of the network's arithmetic.
        has_void: whether an ignored label occurred.
    """

    folder: Path
    source: Prediction | Partners
    rule: Rule
    measures: Measures
    images: Path | None = None
    tiles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_void: bool = False

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The colour of each class."""
        if isinstance(self.source, Prediction):
            return self.source.model.palette
        return tuple(PALETTE[index % len(PALETTE)] for index in range(self.rule.num_classes))

    def rows(self, paths: Sequence[Path], batch_size: int, follow: Follow) -> Iterator[Row]:
        """Yields a row for each picture, in order; `batch_size` neighbours of one size go through together."""
        batch: list[Sample] = []
        for path in paths:
            follow.begin(path)
            try:
                sample = self.read(path)
            except Exception as error:
                yield from self._score(batch, follow)
                batch = []
                row = failed(path, self.folder, error)
                follow.row(row, "")
                yield row
                continue
            if batch and (len(batch) == batch_size or _shape(batch[0]) != _shape(sample)):
                yield from self._score(batch, follow)
                batch = []
            batch.append(sample)
            if len(batch) == batch_size:
                yield from self._score(batch, follow)
                batch = []
        yield from self._score(batch, follow)

    def check_foreground(self, masks: str | Path) -> None:
        """Passes masks with some foreground, or without void.

        Raises:
            DataError: binary masks of 0 and void alone, which most likely mean 0 and 255.
        """
        if self.rule.metric == "iou" and self.has_void and not self.measures.total.matrix[1].any():
            raise DataError(
                f"{printable(masks)}: no label 1, but {self.rule.ignore_index}, which is ignored; expected 1 for the "
                "foreground: write 255 as 1 into the masks"
            )

    def read(self, path: Path) -> Sample:
        """Returns a picture and its mask, or a mask and its prediction.

        Raises:
            ImageError: one of them cannot be read.
            DataError: there is no such, or the sizes do not fit each other or the protocol.
        """
        if isinstance(self.source, Partners):
            target, other = self.rule.read_target(path), self.source.find(path, self.folder)
            sample = Sample(path, target, ids=read_mask(other))
            shape = sample.ids.shape if sample.ids is not None else ()
        else:
            other = self.source.masks.find(path, self.folder)
            target = self.rule.read_target(other)
            sample = Sample(path, target, to_unit(read_image(path).pixels)[0])
            shape = tuple(sample.image.shape[-2:]) if sample.image is not None else ()
        if shape != target.shape:
            here, there = (target.shape, shape) if isinstance(self.source, Partners) else (shape, target.shape)
            raise DataError(
                f"{here[1]}x{here[0]}, but {printable(other.name)} is {there[1]}x{there[0]}; expected the same size"
            )
        return sample

    def predict(self, batch: Sequence[Sample], follow: Follow | None = None) -> tuple[list[Ids], Tensor | None, str]:
        """Returns the classes of every picture, the logits if a model made them, and the windows it took."""
        if isinstance(self.source, Partners):
            return [sample.ids for sample in batch if sample.ids is not None], None, ""
        x = torch.cat([sample.image for sample in batch if sample.image is not None])
        side = self.source.model.choose_tile(x.shape[-2], x.shape[-1], self.source.tile, batch=len(x))
        on_tile = follow.tile if follow else None
        logits = self.source.model.logits(x, tile=side or "off", on_tile=on_tile, notes=self.notes)
        return list(classes_of(logits).byte().cpu().numpy()), logits, str(side or "whole")

    def logits(self, path: Path) -> tuple[Tensor, Ids]:
        """Returns the logits (num_outputs, H, W) of a picture and its mask.

        Raises:
            ImageError: one of them cannot be read.
            DataError: they do not fit each other.
        """
        try:
            sample = self.read(path)
        except DataError as error:
            raise DataError(f"{printable(path)}: {error}") from error
        logits = self.predict([sample])[1]
        assert logits is not None, "only a model has logits"
        return logits[0], sample.target

    def _score(self, batch: Sequence[Sample], follow: Follow) -> Iterator[Row]:
        if not batch:
            return
        try:
            predicted, logits, tile = self.predict(batch, follow)
        except Exception as error:
            for sample in batch:
                row = failed(sample.path, self.folder, error)
                follow.row(row, "")
                yield row
            return
        paths = [sample.path for sample in batch]
        for index, (sample, ids) in enumerate(zip(batch, predicted, strict=True)):
            try:
                figures = self.measures.add(ids, sample.target, None if logits is None else logits[index])
                row = Row(
                    name_of(sample.path, self.folder),
                    figures,
                    pictures=partial(self.pictures, paths, index),
                )
                self.tiles.append(tile)
                self.has_void |= bool((sample.target == self.rule.ignore_index).any())
            except Exception as error:
                row = failed(sample.path, self.folder, error)
            follow.row(row, tile)
            yield row

    def pictures(self, paths: Sequence[Path], index: int) -> dict[str, NDArray[np.uint8]]:
        """Returns what there is to see of a picture, (H, W, 3): image, prediction, target and wrong pixels.

        Args:
            paths: of the batch it was in.
            index: of the picture.
        """
        samples = [self.read(path) for path in paths]
        ids, target = self.predict(samples)[0][index], samples[index].target
        return views_seg(self._image(paths[index]), ids, target, self.palette, self.rule.ignore_index)

    def _image(self, path: Path) -> NDArray[np.uint8] | None:
        if isinstance(self.source, Partners):
            if self.images is None:
                return None
            path = Partners(self.images, masks=True).find(path, self.folder)
        return to_rgb8(read_image(path).pixels)


def _fitted(source: Prediction, held_out: tuple[str | Path, str | Path], scored: Path, rule: Rule) -> float:
    """Returns the temperature that fits the pictures and masks in two folders best.

    Raises:
        ConfigError: they are those that are scored.
        DataError, ImageError: one of them cannot be used.
    """
    images, masks = map(Path, held_out)
    if images.resolve() == scored.resolve():
        raise ConfigError(f"{printable(images)}: the pictures that are scored; fit the temperature on others")
    other = SegEvaluator(
        images, Prediction(source.model, Partners(masks, masks=True), source.tile), rule, Measures(rule)
    )
    return fit_temperature(map(other.logits, list_pictures([images])), ignore_index=rule.ignore_index)


def _shape(sample: Sample) -> tuple[int, ...]:
    return tuple(sample.image.shape) if sample.image is not None else sample.target.shape

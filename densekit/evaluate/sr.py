"""How near a super-resolution comes to its originals, by a named protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from densekit.datasets.partners import Partners
from densekit.datasets.pictures import list_pictures
from densekit.errors import ConfigError, DataError
from densekit.evaluate.common import (
    Follow,
    Silent,
    bn_mode_of,
    conditions_of,
    count_of,
    failed,
    mean_of,
    name_of,
    tiles_of,
)
from densekit.evaluate.figures import FIGURES, Pixels, Scene, check_figures, explained
from densekit.evaluate.sets import check_choice, find_set, is_part
from densekit.evaluate.views import views_sr
from densekit.image import Picture, read_image
from densekit.metrics import PROTOCOLS
from densekit.predict.inputs import to_rgb8
from densekit.report import Evaluation, Row
from densekit.resize import imresize

if TYPE_CHECKING:
    from densekit.predict import Upscaler
    from densekit.predict.tiles import Tile

GREY_Y = "grey-y"  # the protocol that takes the one channel of grey pictures as luma; all others replicate it


def evaluate_sr(
    model: Upscaler | None,
    hr: str | Path,
    *,
    lr: str | Path | None = None,
    sr: str | Path | None = None,
    scale: int | None = None,
    protocol: str = "rdn-y",
    metrics: Sequence[str] = ("psnr", "ssim"),
    explain: bool = False,
    tile: Tile = "auto",
    self_ensemble: bool = False,
    root: str | Path = ".",
    conditions: Mapping[str, str] | None = None,
    follow: Follow | None = None,
) -> Evaluation:
    """Returns the figures of a model, or of a folder of results, on a folder of originals.

    Originals are cropped at the bottom and right to a multiple of the scale, and reduced by `densekit.resize` mode
    "benchmark", unless `lr` holds the low-resolution pictures. A picture that cannot be read or does not fit has a row
    with its error, and the figures of the set are means over the others.

    Args:
        model: as from `densekit.load`; None where `sr` is given.
        hr: a folder of originals, or the name of a test set below `root`/data.
        lr: a folder of low-resolution pictures, paired by name.
        sr: a folder of results that are there already, paired by name.
        scale: of results; by default that of the model, or of `lr`.
        protocol: a name in `densekit.metrics.PROTOCOLS`.
        metrics: names in `densekit.evaluate.figures.FIGURES`, the headline first.
        explain: also score by every other protocol; the summary then holds "psnr@rgb", "ssim@rgb" and so on.
        tile: as for `Upscaler.predict`.
        self_ensemble: likewise.
        root: of the repository, where test sets are found by name.
        conditions: further ones to record, such as the model's file and the command.
        follow: is told how it proceeds.

    Raises:
        ConfigError: an unknown protocol or metric, neither or both of model and results, or no scale.
        DataError: a set or folder that is not there.
    """
    check_choice("protocol", protocol, tuple(PROTOCOLS))
    if (model is None) == (sr is None):
        raise ConfigError("give either a model or a folder of results")
    name, folder = find_set(hr, root)
    lows = Partners(lr, scale=scale if model is None else model.scale) if lr is not None else None
    first = list_pictures([folder])
    if model is not None and scale not in (None, model.scale):
        raise ConfigError(f"scale {scale}: the model's is {model.scale}; leave it out")
    factor = model.scale if model is not None else scale or _scale_from(first, folder, lows)
    evaluator = SrEvaluator(
        factor,
        folder,
        Upscaling(model, tile, self_ensemble) if model is not None else Partners(sr or "", scale=factor),
        lows,
        protocol,
        check_figures(metrics),
        explain,
    )
    follow = follow or Silent()
    follow.start(first, {"protocol": protocol, "resize": evaluator.resize, "scale": str(factor)})
    rows = []
    for path in first:
        follow.begin(path)
        row = evaluator.row(path, follow.tile)
        rows.append(row)
        follow.row(row, evaluator.tile)
    given = dict(conditions or {})
    subject = str(sr) if model is None else given.get("model", model.card.model)
    whole = is_part(name, len(first))
    return Evaluation(
        title=f"{subject} on {name} x{factor}",
        task="sr",
        metric=evaluator.metrics[0],
        rows=rows,
        summary={**{key: mean_of(rows, key) for key in evaluator.metrics}, **evaluator.explanation},
        conditions=conditions_of(
            {
                "protocol": protocol,
                "protocol_means": PROTOCOLS[protocol].description,
                "set": f"{name} ({len(first)} of its {whole} pictures)" if whole else name,
                "resize": evaluator.resize,
                "scale": str(factor),
                "pictures": count_of(rows),
                "grey": evaluator.grey,
            },
            model,
            given,
            {
                "results": str(sr or ""),
                "bn_mode": bn_mode_of(model) if model is not None else "",
                "self_ensemble": "mean over 8 flips and turns" if self_ensemble and model is not None else "",
                "tile": tiles_of(evaluator.tiles),
                "data": str(folder),
                "lr_data": str(lr or ""),
                "notes": "; ".join(dict.fromkeys(evaluator.notes)),
            },
        ),
    )


def _scale_from(paths: Sequence[Path], folder: Path, lows: Partners | None) -> int:
    """Returns how many times larger than their low-resolution partners originals are.

    Raises:
        ConfigError: there are no such partners, or none that fits.
    """
    for path in paths if lows else []:
        assert lows is not None
        try:
            high, low = read_image(path), read_image(lows.find(path, folder))
        except DataError:
            continue
        factor = high.height // low.height
        if factor and factor == high.width // low.width:
            return factor
    raise ConfigError("two folders of pictures do not say their scale; give --scale N (scale=N), or --lr (lr=)")


@dataclass
class Upscaling:
    """A model and how it is run; `notes` fills with what a reader should know of its arithmetic."""

    model: Upscaler
    tile: Tile
    self_ensemble: bool
    notes: list[str] = field(default_factory=list)

    def side(self, picture: Picture) -> int | None:
        """Returns the side of the tiles for a picture, None for the whole at once."""
        return self.model.choose_tile(picture.height, picture.width, self.tile)

    def run(self, picture: Picture, side: int | None, on_tile: Callable[[int, int], None] | None) -> Pixels:
        """Returns the enlarged pixels."""
        result = self.model.upscale_picture(
            picture, tile=side or "off", self_ensemble=self.self_ensemble, on_tile=on_tile
        )
        self.notes += result.warnings
        return result.pixels


class _Read(NamedTuple):
    lr: Pixels
    hr: Pixels
    is_grey: bool


@dataclass
class SrEvaluator:
    """Scores one original after the other.

    Args:
        scale: between low and high resolution.
        folder: of the originals.
        source: makes the results, or holds them.
        lows: low-resolution pictures; None reduces the originals.
        protocol, metrics, explain: as for `evaluate_sr`.

    Attributes:
        num_grey: pictures of one channel so far.
        tiles, tile: "whole" or the side of each picture's tiles, and the last one.
        unlike: given low-resolution pictures that the benchmarks' resize would have made otherwise.
    """

    scale: int
    folder: Path
    source: Upscaling | Partners
    lows: Partners | None
    protocol: str
    metrics: tuple[str, ...]
    explain: bool = False
    explained: list[list[tuple[str, float, float]]] = field(default_factory=list)
    num_grey: int = 0
    tiles: list[str] = field(default_factory=list)
    tile: str = ""
    unlike: int = 0
    compared: int = 0

    @property
    def resize(self) -> str:
        """How the low-resolution pictures were made; empty where none were needed."""
        if self.lows is None:
            return "benchmark" if isinstance(self.source, Upscaling) else ""
        if not self.compared:
            return "files"
        return f"files, {self.unlike} of {self.compared} unlike benchmark" if self.unlike else "files, as benchmark"

    @property
    def grey(self) -> str:
        """What became of grey pictures, and how many there were; empty without any."""
        if not self.num_grey:
            return ""
        count = f"{self.num_grey} grey picture{'s' * (self.num_grey > 1)}"
        return f"{count} as Y" if self.protocol == GREY_Y else f"{count} replicated to RGB"

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the network's arithmetic."""
        return self.source.notes if isinstance(self.source, Upscaling) else []

    @property
    def explanation(self) -> dict[str, float | None]:
        """The means by every protocol, where they were asked for: "psnr@rgb", "ssim@rgb" and so on."""
        means: dict[str, float | None] = {}
        for same in zip(*self.explained, strict=True):
            protocol = same[0][0]
            means[f"psnr@{protocol}"] = float(np.mean([psnr for _, psnr, _ in same]))
            means[f"ssim@{protocol}"] = float(np.mean([ssim for _, _, ssim in same]))
        return means

    def row(self, path: Path, on_tile: Callable[[int, int], None] | None = None) -> Row:
        """Returns a picture's figures, or what is wrong with it."""
        self.tile = ""
        try:
            read = self.read(path)
            sr = self.result(path, read, on_tile)
            if sr.shape != read.hr.shape:
                raise DataError(
                    f"the result is {_size(sr)}, but the original is {_size(read.hr)} after its crop to a multiple of "
                    f"{self.scale}; expected the same size"
                )
            scene = Scene(sr, read.hr, read.lr, self.scale, self.protocol)
            figures: dict[str, float | None] = {key: FIGURES[key](scene) for key in self.metrics}
            others = explained(sr, read.hr, scale=self.scale, is_grey=read.is_grey) if self.explain else []
        except Exception as error:
            return failed(path, self.folder, error)
        self.explained += [others] if others else []
        self.num_grey += read.is_grey
        self.tiles.append(self.tile)
        if self.lows is not None:
            self.compared += 1
            self.unlike += not np.array_equal(imresize(read.hr, 1 / self.scale, mode="benchmark"), read.lr)
        return Row(name_of(path, self.folder), figures, pictures=lambda: self.pictures(path))

    def read(self, path: Path) -> _Read:
        """Returns a low-resolution picture and the cropped original, grey ones as asked.

        Raises:
            ImageError: one of them cannot be read.
            DataError: there is no low-resolution picture, or its size does not fit.
        """
        hr, is_grey = self._pixels(path)
        height, width = (size - size % self.scale for size in hr.shape[:2])
        if not (height and width):
            raise DataError(f"{_size(hr)} pixels; expected at least {self.scale} each way, the scale")
        hr = hr[:height, :width]
        if self.lows is None:
            return _Read(imresize(hr, 1 / self.scale, mode="benchmark"), hr, is_grey)
        other = self.lows.find(path, self.folder)
        lr, _ = self._pixels(other)
        if lr.shape[:2] != (height // self.scale, width // self.scale):
            raise DataError(
                f"its low-resolution picture {other.name} is {_size(lr)}; expected "
                f"{width // self.scale}x{height // self.scale} for {width}x{height} at scale {self.scale}"
            )
        return _Read(lr, hr, is_grey)

    def result(self, path: Path, read: _Read, on_tile: Callable[[int, int], None] | None) -> Pixels:
        """Returns the enlarged picture, made or read.

        Raises:
            DataError: it cannot be read, or is not there.
            DeviceError: not enough memory.
        """
        if isinstance(self.source, Partners):
            return self._pixels(self.source.find(path, self.folder))[0]
        picture = Picture(read.lr)
        side = self.source.side(picture)
        self.tile = str(side or "whole")
        return self.source.run(picture, side, on_tile)

    def pictures(self, path: Path) -> dict[str, Pixels]:
        """Returns what there is to see of a picture, (H, W, 3): lr, bicubic, sr, hr and a map of the error."""
        read = self.read(path)
        sr = self.result(path, read, None)
        return views_sr(read.lr, sr, read.hr)

    def _pixels(self, path: Path) -> tuple[Pixels, bool]:
        """Returns a picture as 8 bits, (H, W, 3), or (H, W, 1) where grey is luma, and whether it was grey."""
        stored = read_image(path).pixels
        pixels, is_grey = to_rgb8(stored), stored.shape[2] == 1
        return (pixels[..., :1] if is_grey and self.protocol == GREY_Y else pixels), is_grey


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"

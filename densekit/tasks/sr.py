"""Super-resolution, as the training loop sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from densekit import ranks
from densekit.cards import Card
from densekit.config import Config
from densekit.datasets.packed import Record
from densekit.datasets.pairs import Pairs, load_pairs, to_chw
from densekit.datasets.partners import pair_pictures
from densekit.datasets.pictures import Pixels
from densekit.datasets.split import split_by_name
from densekit.errors import ConfigError, DataError
from densekit.files import printable
from densekit.losses import Loss, Perceptual, super_resolution_loss
from densekit.metrics import psnr
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


class SuperResolution:
    """Pairs made from high-resolution pictures, a pixel loss, PSNR under a protocol."""

    metric = "psnr"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.scale: int = config.model.kwargs["scale"]
        self.protocol: str = config.eval.protocol or "rdn-y"
        self.adversary: Adversary | None = Adversary(config) if config.gan else None
        self.criterion: Loss = picture_loss(config)
        check_network(config, self.scale, out_channels=3)
        data = config.data
        pairs = pair_pictures(data.train, data.lr, scale=self.scale)
        val = pair_pictures(data.val, data.val_lr, scale=self.scale) if data.val else []
        if data.val_share:
            pairs, val = split_by_name(pairs, data.val_share)
        self.blind: bool = data.degradation != "bicubic"  # low resolution is made from each crop anew
        self.data: Pairs = Pairs(
            pairs,
            self.scale,
            config.train.crop_size,
            config.train.seed,
            shrink=data.shrink,
            cache=data.cache,
            hr_only=self.blind,
        )
        if self.data.left_out:
            sys.stderr.write(
                f"warning: {len(self.data.left_out)} of {len(self.data.paths)} training pictures are smaller than a "
                f"crop and left out, the first {printable(self.data.left_out[0])}\n"
            )
        self.val_paths: list[Path] = [source[0] for source in val]
        if self.blind and not data.val_lr:
            from densekit.datasets.degradation import load_degraded  # here and below: kornia costs a second

            loaded = load_degraded(val, self.scale, data.degradation, cache=data.cache)
        else:
            loaded = load_pairs(val, self.scale, cache=data.cache)
        self.val: list[tuple[Pixels, Pixels]] = [
            self._val_pair(path, made) for path, made in zip(self.val_paths, loaded, strict=True)
        ]
        self.fingerprint: str = fingerprint(path for source in (*pairs, *val) for path in source)

    def _val_pair(self, path: Path, made: list[Record]) -> tuple[Pixels, Pixels]:
        """Returns the pair of a validation picture, which must not turn out too small when it is scored."""
        try:
            if not made:
                raise DataError(f"smaller than {self.scale}x{self.scale} pixels")
            lr, hr = made[0]
            psnr(hr, hr, protocol=self.protocol, scale=self.scale)
        except DataError as error:
            raise DataError(f"{printable(path)}: cannot be scored: {error}") from error
        return lr, hr

    def build_model(self) -> nn.Module:
        return new_model(self.config)

    def describe_data(self) -> str:
        left_out = f" ({len(self.data.left_out)} too small)" if self.data.left_out else ""
        return (
            f"data: {len(self.data.paths)} pictures{left_out} as {len(self.data)} pairs to train on, "
            f"{len(self.val)} to evaluate on"
        )

    def train_batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(self.data, self.config, start)

    def sources(self, draws: Iterable[int]) -> list[Path]:
        return sources(self.data, self.config, draws)

    def loss(self, net: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        lr, hr = (tensor.float() / 255 for tensor in batch)
        target = hr
        if self.blind:
            lr, target = self._degrade(hr)
        sr = net(lr).float()
        loss = self.criterion(sr, target)
        return loss + self.adversary.judge(sr, hr) if self.adversary else loss

    def _degrade(self, hr: Tensor) -> tuple[Tensor, Tensor]:
        """Returns low resolution that depends on torch's random state, and what the network is to make of it."""
        from densekit.datasets.degradation import PRESETS, degrade, random_seeds, sharpen

        data = self.config.data
        target = sharpen(hr) if data.sharpen else hr
        return degrade(target, self.scale, random_seeds(len(hr)), PRESETS[data.degradation]), target

    def evaluate(self, net: nn.Module) -> dict[str, float]:
        if not self.val:
            return {}
        figures = []
        for lr, hr in self.val[ranks.rank() :: ranks.count()]:
            figures.append(psnr(enlarge(net, lr), hr, protocol=self.protocol, scale=self.scale))
        parts = ranks.gathered(figures)
        ordered = [parts[index % len(parts)][index // len(parts)] for index in range(len(self.val))]
        return {"psnr": float(np.mean(ordered))}

    def samples(self, net: nn.Module, start: int = 0) -> Iterator[Sample]:
        for path, (lr, hr) in zip(self.val_paths[start:], self.val[start:], strict=True):
            yield Sample(path, lr, enlarge(net, lr), hr)

    def card(self, step: int, metrics: dict[str, Any]) -> Card:
        config = self.config
        data, licence = trained_on(config)
        scored = scored_on(config)
        if self.blind and not config.data.val_lr:
            scored += f" degraded by {config.data.degradation}"
        return Card(
            task="sr",
            model=config.model.name,
            arguments=rebuilding(config),
            step=step,
            metrics={**metrics, "protocol": self.protocol, "data": scored} if metrics else {},
            data=data,
            licence=licence,
            bn_mode=config.eval.bn_mode,
        )


def picture_loss(config: Config) -> Loss:
    """Returns the loss (sr, hr) -> scalar of a config, without the adversary's part.

    Raises:
        ConfigError: the perceptual loss cannot be made as the config has it, or the crops are too small for it.
        CheckpointError: its weights cannot be read.
    """
    name, train, scale = config.train.loss or "l1", config.train, config.model.kwargs["scale"]
    if "perceptual" not in name:
        return super_resolution_loss(name)
    if train.crop_size * scale < 16:
        raise ConfigError(
            f"train.crop_size={train.crop_size}: gives pictures of {train.crop_size * scale} pixels at scale {scale}, "
            f"but the loss perceptual needs 16; raise it to {-(-16 // scale)} or more"
        )
    if train.perceptual_weights is None:
        sys.stderr.write(
            "warning: train.perceptual_weights is null: the perceptual loss compares features of a VGG19 with random "
            "weights, which tell textures apart less well than trained ones\n"
        )
    try:
        perceptual = Perceptual(train.perceptual_weights, train.perceptual_layers or None)
    except ConfigError as error:
        raise ConfigError(f"train.loss={name}: {error}") from error

    def on_its_device(sr: Tensor, hr: Tensor) -> Tensor:
        return perceptual.to(sr.device)(sr, hr)

    return super_resolution_loss(name, perceptual=on_its_device)


def enlarge(net: nn.Module, lr: Pixels) -> Pixels:
    """Returns what a network makes of low-resolution pixels (H, W, 3), as 8 bits."""
    device = next(net.parameters()).device
    y = net(to_chw(lr)[None].to(device).float() / 255)[0]
    return (y.float().clamp(0, 1) * 255 + 0.5).floor().byte().permute(1, 2, 0).cpu().numpy()

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
from densekit.datasets.pairs import Pairs, make_pair, to_chw
from densekit.datasets.pictures import Pixels, list_pictures, read_rgb
from densekit.errors import DataError
from densekit.files import printable
from densekit.losses import super_resolution_loss
from densekit.metrics import psnr
from densekit.tasks.common import batches, check_network, fingerprint, new_model, sources, trained_on


class SuperResolution:
    """Pairs made from high-resolution pictures, a pixel loss, PSNR under a protocol."""

    metric = "psnr"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.scale = config.model.kwargs["scale"]
        self.protocol = config.eval.protocol or "rdn-y"
        self.criterion = super_resolution_loss(config.train.loss or "l1")
        check_network(config, self.scale, out_channels=3)
        self.data = Pairs(
            config.data.train, self.scale, config.train.crop_size, config.train.seed, shrink=config.data.shrink
        )
        if self.data.left_out:
            sys.stderr.write(
                f"warning: {len(self.data.left_out)} of {len(self.data.paths)} training pictures are smaller than a "
                f"crop and left out, the first {printable(self.data.left_out[0])}\n"
            )
        val = list_pictures(config.data.val) if config.data.val else []
        self.val = [self._val_pair(path) for path in val]
        self.fingerprint = fingerprint([*self.data.paths, *val])

    def _val_pair(self, path: Path) -> tuple[Pixels, Pixels]:
        picture = read_rgb(path)
        try:
            lr, hr = make_pair(picture, self.scale)
            psnr(hr, hr, protocol=self.protocol, scale=self.scale)
        except DataError as error:  # too small, which must not come out at the first evaluation
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
        lr, hr = batch
        return self.criterion(net(lr.float() / 255).float(), hr.float() / 255)

    def evaluate(self, net: nn.Module) -> dict[str, float]:
        if not self.val:
            return {}
        device = next(net.parameters()).device
        figures = []
        for lr, hr in self.val[ranks.rank() :: ranks.count()]:
            y = net(to_chw(lr)[None].to(device).float() / 255)[0]
            sr = (y.float().clamp(0, 1) * 255 + 0.5).floor().byte().permute(1, 2, 0).cpu().numpy()
            figures.append(psnr(sr, hr, protocol=self.protocol, scale=self.scale))
        parts = ranks.gathered(figures)
        ordered = [parts[index % len(parts)][index // len(parts)] for index in range(len(self.val))]
        return {"psnr": float(np.mean(ordered))}

    def card(self, step: int, metrics: dict[str, Any]) -> Card:
        config = self.config
        data, licence = trained_on(config)
        return Card(
            task="sr",
            model=config.model.name,
            arguments=config.model.kwargs,
            step=step,
            metrics={**metrics, "protocol": self.protocol, "data": ", ".join(config.data.val)} if metrics else {},
            data=data,
            licence=licence,
            bn_mode=config.eval.bn_mode,
        )

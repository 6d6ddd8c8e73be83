"""Adversarial losses on a discriminator's logits, of any shape: above 0 for what it takes to be real."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from densekit.errors import ConfigError, suggest

GanLoss = Callable[[Tensor, Tensor], Tensor]


def _says(logits: Tensor, real: bool) -> Tensor:
    """Returns how far the logits are from saying "real" or "fake" throughout: cross entropy, stable for any logit."""
    return F.softplus(-logits if real else logits).mean()


def _relativistic(real: Tensor, fake: Tensor, real_wins: bool) -> Tensor:
    """Returns half of each of two sides: is what is real more real than the average fake, and the reverse?"""
    return (_says(real - fake.mean(), real_wins) + _says(fake - real.mean(), not real_wins)) / 2


class _Pair(NamedTuple):
    discriminator: GanLoss
    generator: GanLoss


GAN_LOSSES: dict[str, _Pair] = {
    # Jolicoeur-Martineau (ICLR 2019), as in ESRGAN; halved as in BasicSR, so that no opinion costs ln 2 and not 2 ln 2
    "ragan": _Pair(
        lambda real, fake: _relativistic(real, fake, real_wins=True),
        lambda real, fake: _relativistic(real, fake, real_wins=False),
    ),
    # Goodfellow et al. (NIPS 2014), the form that does not saturate
    "vanilla": _Pair(
        lambda real, fake: (_says(real, True) + _says(fake, False)) / 2,
        lambda real, fake: _says(fake, True),
    ),
    # Mao et al. (ICCV 2017)
    "lsgan": _Pair(
        lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
        lambda real, fake: (fake - 1).square().mean(),
    ),
    # Lim and Ye (2017)
    "hinge": _Pair(
        lambda real, fake: (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2,
        lambda real, fake: -fake.mean(),
    ),
}


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "ragan") -> Tensor:
    """Returns what the discriminator minimises.

    Args:
        real: its logits of real pictures.
        fake: its logits of made ones, which the caller detaches from the generator.
        kind: a name of GAN_LOSSES.

    Raises:
        ConfigError: an unknown kind.
    """
    return _find(kind).discriminator(real, fake)


def generator_loss(real: Tensor, fake: Tensor, kind: str = "ragan") -> Tensor:
    """Returns what the generator minimises. No gradient reaches the discriminator's view of real pictures.

    Args:
        real: the discriminator's logits of real pictures; only "ragan" reads them.
        fake: its logits of those the generator made.
        kind: a name of GAN_LOSSES.

    Raises:
        ConfigError: an unknown kind.
    """
    return _find(kind).generator(real.detach(), fake)


def _find(kind: str) -> _Pair:
    if kind not in GAN_LOSSES:
        raise ConfigError(f"no GAN loss {kind!r}{suggest(kind, GAN_LOSSES)} (known: {', '.join(GAN_LOSSES)})")
    return GAN_LOSSES[kind]

"""Losses: of segmentation, where void never counts, and of super-resolution.

Means are over the pixels of one forward pass. Where several passes are accumulated to one step, each counts alike,
however many of its pixels are void.
"""

from densekit.losses.entropy import binary_cross_entropy, binary_focal, cross_entropy, focal, ohem
from densekit.losses.gan import GAN_LOSSES, discriminator_loss, generator_loss
from densekit.losses.lovasz import lovasz
from densekit.losses.masking import IGNORE, Masked, mask
from densekit.losses.overlap import dice, focal_tversky, jaccard, tversky
from densekit.losses.perceptual import Perceptual
from densekit.losses.pixel import SR_LOSSES, charbonnier, fft, l1, luma
from densekit.losses.sums import SEG_LOSSES, Loss, segmentation_loss, super_resolution_loss

__all__ = [
    "GAN_LOSSES",
    "IGNORE",
    "SEG_LOSSES",
    "SR_LOSSES",
    "Loss",
    "Masked",
    "Perceptual",
    "binary_cross_entropy",
    "binary_focal",
    "charbonnier",
    "cross_entropy",
    "dice",
    "discriminator_loss",
    "fft",
    "focal",
    "focal_tversky",
    "generator_loss",
    "jaccard",
    "l1",
    "lovasz",
    "luma",
    "mask",
    "ohem",
    "segmentation_loss",
    "super_resolution_loss",
    "tversky",
]

"""Figures of merit by named protocols; nothing here knows a model or imports torch."""

from densekit.metrics.seg import ConfusionMatrix
from densekit.metrics.sr import PROTOCOLS, psnr, ssim

__all__ = ["PROTOCOLS", "ConfusionMatrix", "psnr", "ssim"]

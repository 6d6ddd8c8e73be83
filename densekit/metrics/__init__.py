"""Figures of merit by named protocols; nothing here knows a model or imports torch."""

from densekit.metrics.boundary import BoundaryF1, BoundaryIoU
from densekit.metrics.calibration import Calibration, fit_temperature, softmax
from densekit.metrics.naturalness import niqe
from densekit.metrics.perceptual import dists, lpips
from densekit.metrics.seg import ConfusionMatrix
from densekit.metrics.seg_protocols import (
    SEG_PROTOCOLS,
    SegProtocol,
    check_camvid_split,
    find_split,
    seg_protocol,
    split_hash,
)
from densekit.metrics.similarity import ms_ssim, ssim
from densekit.metrics.sr import explain, lr_consistency, psnr
from densekit.metrics.sr_protocols import PROTOCOLS, Protocol

__all__ = [
    "PROTOCOLS",
    "SEG_PROTOCOLS",
    "BoundaryF1",
    "BoundaryIoU",
    "Calibration",
    "ConfusionMatrix",
    "Protocol",
    "SegProtocol",
    "check_camvid_split",
    "dists",
    "explain",
    "find_split",
    "fit_temperature",
    "lpips",
    "lr_consistency",
    "ms_ssim",
    "niqe",
    "psnr",
    "seg_protocol",
    "softmax",
    "split_hash",
    "ssim",
]

"""Figures of models on data, by named protocols and with the conditions they were measured under."""

from __future__ import annotations

from densekit.evaluate.seg import evaluate_seg
from densekit.evaluate.sr import evaluate_sr
from densekit.evaluate.statistics import recalibrate

__all__ = ["evaluate_seg", "evaluate_sr", "recalibrate"]

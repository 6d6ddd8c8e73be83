"""Every fault of a data set in one pass, each with its next step, and facts about the data."""

from __future__ import annotations

from collections.abc import Sequence

from densekit.config import Config
from densekit.datasets.checks.result import CheckResult, Fault
from densekit.datasets.checks.seg import check_seg
from densekit.datasets.checks.sr import check_sr

__all__ = ["CheckResult", "Fault", "check_config", "check_seg", "check_sr"]


def check_config(
    config: Config,
    *,
    lr: Sequence[str] = (),
    num_classes: int | None = None,
    crop_size: int | None = None,
    threads: int | None = None,
) -> CheckResult:
    """Returns every fault of the data that a config names; see `check_sr` and `check_seg`.

    Args:
        config: of one run.
        lr: sr: folders of low-resolution pictures, one for each of data.train, instead of data.lr.
        num_classes: seg: instead of model.num_classes.
        crop_size: instead of train.crop_size.
        threads: decoders beside each other; None: one a core, at most 8.
    """
    data, size = config.data, crop_size or config.train.crop_size
    if config.task == "sr":
        scale = config.model.kwargs["scale"]
        return check_sr(
            data.train,
            lr=lr or data.lr,
            val=data.val,
            val_lr=data.val_lr,
            val_share=data.val_share,
            scale=scale,
            crop_size=size,
            threads=threads,
        )
    number = num_classes or config.model.kwargs.get("num_classes")
    return check_seg(
        data.train,
        data.masks,
        val_images=data.val,
        val_masks=data.val_masks,
        num_classes=max(number, 2) if isinstance(number, int) else None,  # one logit tells two classes apart
        classes=data.classes,
        palette=data.palette,
        class_map=data.class_map,
        ignore_index=data.ignore_index,
        val_share=data.val_share,
        crop_size=size,
        threads=threads,
    )

"""What the values of a config must be to go together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from densekit.errors import suggest
from densekit.plain_yaml import shorten

if TYPE_CHECKING:
    from densekit.config.schema import Config

_TASK_LOSSES = {
    "sr": ("l1", "charbonnier", "luma", "fft", "perceptual"),
    "seg": ("ce", "bce", "focal", "bfocal", "ohem", "dice", "jaccard", "tversky", "focal-tversky", "lovasz"),
}
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_LOSS = re.compile(r"(?:(\d+(?:\.\d+)?|\.\d+) *\* *)?([\w-]+)")  # 0.5*dice
_NUM_BETAS = {"adam": 2, "adamw": 2, "rmsprop": 1}
_TASK_PROTOCOLS = {
    "sr": ("rdn-y", "rgb"),
    "seg": ("camvid11-360x480", "voc21", "cityscapes19", "dataset-iou", "binary"),
}
_ONLY = {  # keys that only one task has, in their sections
    "seg": {
        "data": ("masks", "val_masks", "classes", "palette", "class_map", "focus"),
        "train": ("label_smoothing", "class_weights"),
        "eval": (),
    },
    "sr": {
        "data": ("lr", "val_lr", "shrink", "degradation", "sharpen"),
        "train": ("perceptual_weights", "perceptual_layers"),
        "eval": (),
    },
}


def faults_together(config: Config) -> Iterator[tuple[str, str]]:
    """Yields (key, what is wrong) for values that do not go together."""
    yield from _of_another_task(config)
    yield from _in_data(config)
    yield from _in_training(config)


def _of_another_task(config: Config) -> Iterator[tuple[str, str]]:
    other = "sr" if config.task == "seg" else "seg"
    for name, keys in _ONLY[other].items():
        section = getattr(config, name)
        for key in keys:
            if getattr(section, key) != type(section).model_fields[key].get_default():
                yield f"{name}.{key}", f"belongs to task {other}, but the task is {config.task}; remove it"
    if config.task == "seg" and config.gan is not None:
        yield "gan", "belongs to task sr, but the task is seg; remove it"


def _in_data(config: Config) -> Iterator[tuple[str, str]]:
    task, data = config.task, config.data
    beside = {"sr": (("lr", "train"), ("val_lr", "val")), "seg": (("masks", "train"), ("val_masks", "val"))}
    for others, pictures in beside[task]:
        given, needed = len(getattr(data, others)), len(getattr(data, pictures))
        if given not in (0, needed):
            yield f"data.{others}", f"has {given} folders, but data.{pictures} has {needed}; give one for each, or none"
    if data.lr and data.shrink != [1]:
        yield "data.shrink", "cannot go with data.lr: reduced copies have no low resolution of their own; remove one"
    if data.lr and data.degradation != "bicubic":
        yield "data.degradation", "makes low resolution from data.train, but data.lr has it already; remove one"
    if data.sharpen and data.degradation == "bicubic":
        yield "data.sharpen", "makes low resolution from sharpened pictures, which needs data.degradation=real-esrgan"
    if data.val_share and data.val:
        yield "data.val_share", "takes validation pictures from data.train, but data.val has some; remove one"
    if data.palette and len(data.palette) != len(data.classes):
        yield "data.palette", f"has {len(data.palette)} colours, but data.classes has {len(data.classes)} names"
    for place, color in enumerate(data.class_map):
        if not _COLOR.fullmatch(color):
            yield "data.class_map", f"{shorten(color)} is no colour; write it as '#ff0000'"
        elif color.lower() in [other.lower() for other in list(data.class_map)[:place]]:
            yield "data.class_map", f"has {shorten(color)} twice, in upper and lower case; remove one"


def _in_training(config: Config) -> Iterator[tuple[str, str]]:
    task, data, optim, train = config.task, config.data, config.optim, config.train
    scale = config.model.kwargs.get("scale")
    if task == "sr" and scale is None:
        yield "model.scale", "missing; task sr needs the factor, such as 2"
    elif task == "sr" and (isinstance(scale, bool) or not isinstance(scale, int) or not 1 <= scale <= 8):
        yield "model.scale", "must be a whole number from 1 to 8"
    if train.patience is not None and not data.val and not data.val_share:
        yield "train.patience", "needs data.val or data.val_share, whose figures tell whether training gets better"
    if config.gan is not None and train.patience is not None:
        yield "train.patience", "cannot go with gan: PSNR falls while pictures look better; remove it"
    if config.gan is not None and config.gan.start_step >= train.total_steps:
        yield "gan.start_step", f"must be less than train.total_steps ({train.total_steps}), or gan never counts"
    number = _NUM_BETAS.get(optim.name, 0)
    if optim.betas and len(optim.betas) != number:
        needs = f"takes {number} of them" if number else "has none; remove it"
        yield "optim.betas", f"has {len(optim.betas)} numbers, but optim.name={optim.name} {needs}"
    if optim.eps is not None and not number:
        yield "optim.eps", f"is for adam, adamw and rmsprop; optim.name={optim.name} has none, remove it"
    if optim.warmup_steps >= train.total_steps:
        yield "optim.warmup_steps", f"must be less than train.total_steps ({train.total_steps})"
    if optim.min_learning_rate > optim.learning_rate:
        yield "optim.min_learning_rate", f"must not exceed optim.learning_rate ({optim.learning_rate})"
    protocol, protocols = config.eval.protocol, _TASK_PROTOCOLS[task]
    if protocol is not None and protocol not in protocols:
        yield "eval.protocol", f"does not fit task {task}; use {' or '.join(map(repr, protocols))}"
    for part in train.loss.split("+") if train.loss is not None else ():
        found, known = _LOSS.fullmatch(part.strip()), _TASK_LOSSES[task]
        if found is None or found[2] not in known:
            name = found[2] if found else part.strip()
            hint = suggest(name, known) or f"; use {' or '.join(map(repr, known))}"
            yield "train.loss", f"task {task} has no loss {shorten(name)}{hint}"
    names = [part.rpartition("*")[2].strip() for part in (train.loss or "").split("+")]
    for key in ("perceptual_weights", "perceptual_layers"):
        if getattr(train, key) and "perceptual" not in names:
            yield f"train.{key}", "is for the loss perceptual, which train.loss does not have; add it or remove this"
    if train.parallel == "fsdp" and optim.name == "muon":
        yield "train.parallel", "fsdp splits the matrices that muon needs whole; use ddp or another optim.name"

"""Pipelines of albumentations: the named ones, and those that a config lists.

Importing this module imports albumentations, which takes a second.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.crops import find_corner
from densekit.errors import ConfigError, suggest
from densekit.files import printable
from densekit.losses import IGNORE
from densekit.plain_yaml import shorten

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask a host for a newer version
import albumentations as A
import cv2
from pydantic import ValidationError

KEY = "data.augment"
_NO_STEPS = {  # what albumentations has for other uses
    "Compose": "use Sequential",
    "ReplayCompose": "use Sequential",
    "Lambda": "it takes functions, which a config cannot hold",
    **dict.fromkeys(
        ("BaseCompose", "BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D"),
        "it is what transforms are made from",
    ),
}
# What albumentations warns of and yet does as asked; its other warnings say that an argument was changed or dropped.
_ADVICE = re.compile("is a special case of|is a specialized version of|is an alias for|is very slow")
_CONSTANT = re.compile(r"(?:cv2\.)?((?:INTER|BORDER)_[A-Z0-9_]+)")
_NEAREST = (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)


class _FocusCrop(A.RandomCrop):  # type: ignore[misc]
    """A random crop that in a share of the draws is laid around a pixel of a wanted class, as `find_corner` does.

    Wanted are the `classes` that come with image and mask; without them any but 0. Where the mask has no such pixel,
    the crop lies anywhere.
    """

    def __init__(self, size: int, share: float) -> None:
        super().__init__(size, size)
        self.share = share

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = super().get_params_dependent_on_data(params, data)
        if self.py_random.random() < self.share:
            corner = find_corner(data["mask"], self.height, self.random_generator, data.get("classes"))
            if corner is not None:
                top, left = corner
                found["crop_coords"] = (left, top, left + self.width, top + self.height)
        return found


def crop_steps(size: int, focus: str = "none", share: float = 0.0) -> list[Any]:
    """Returns the steps that make a crop of (size, size), of smaller images too: these are padded, masks with void."""
    crop = A.RandomCrop(size, size) if focus == "none" else _FocusCrop(size, share)
    return [A.PadIfNeeded(size, size, fill_mask=IGNORE), crop]


def named_steps(name: str, crop: Sequence[Any]) -> list[Any]:
    """Returns the steps of a pipeline in `transforms.AUGMENTATIONS`, around those that make the crop."""
    steps: list[Any] = []
    spread = {"none": 0.0, "light": 0.25, "strong": 0.5, "microscopy": 0.5}[name]
    if spread:
        steps.append(A.RandomScale((-spread, spread), p=1.0))
    steps += crop
    if name == "microscopy":
        steps.append(A.D4(p=1.0))
    elif name != "none":
        steps.append(A.HorizontalFlip(p=0.5))
    if name == "microscopy":  # a stain that training never shows must not decide what a nucleus is
        steps += [
            A.RandomGamma(gamma_limit=(50, 200), p=0.4),
            A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.5, hue=0.5, p=0.6),
            A.ToGray(p=0.2),
        ]
    if name == "strong":
        steps.append(A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.04, p=0.6))
    if name in ("strong", "microscopy"):
        steps += [
            A.OneOf([A.GaussianBlur(sigma_limit=(0.3, 1.2)), A.GaussNoise(std_range=(0.01, 0.05))], p=0.15),
        ]
    return steps


def listed_steps(listed: Sequence[object], key: str = KEY) -> list[Any]:
    """Returns the transforms that a config lists, each {name: {argument: value}}; compositions hold such a list.

    What a transform pads in a mask becomes void, where the config does not say otherwise.

    Raises:
        ConfigError: no such transform, or arguments that it does not take; one line that names the key.
    """
    steps = []
    for place, entry in enumerate(listed):
        given = {entry: None} if isinstance(entry, str) else entry
        if not isinstance(given, Mapping) or len(given) != 1:
            raise ConfigError(
                f"{key}[{place}]: must be one name with its arguments, such as HorizontalFlip: {{p: 0.5}}"
            )
        ((name, arguments),) = given.items()
        steps.append(_build(str(name), {} if arguments is None else arguments, f"{key}[{place}] {printable(name)}"))
    return steps


def compose(steps: Sequence[Any]) -> Any:
    """Returns the steps as one, to be called with image and mask."""
    return A.Compose(list(steps))


def try_step(step: Any, data: dict[str, Any], where: str, is_label: NDArray[np.bool_]) -> dict[str, Any]:
    """Returns what a step makes of {"image": (H, W, 3), "mask": (H, W)}, both uint8, when it is sure to be applied.

    Each part of a composition is tried, those of Sequential one after another, others for themselves.

    Raises:
        ConfigError: it fails, or makes something else than images and masks of labels; one line that names it.
    """
    where = f"{where} {type(step).__name__}"
    if isinstance(step, A.BaseCompose) and not isinstance(step, A.SelectiveChannelTransform):
        result = data
        for place, part in enumerate(step.transforms):
            given = result if isinstance(step, A.Sequential) else data
            result = try_step(part, given, f"{where}.transforms[{place}]", is_label)
        return result
    height, width = data["mask"].shape
    try:
        result = step(force_apply=True, **data)
    except Exception as error:
        raise ConfigError(f"{where}: {one_line(error)} (tried on {width}x{height} pixels)") from error
    image, mask = result["image"], result["mask"]
    if _kind(image) != "uint8 (H, W, 3)":
        raise ConfigError(
            f"{where}: makes images {_kind(image)}, but training takes uint8 (H, W, 3) and scales it itself; remove it"
        )
    if _kind(mask) != "uint8 (H, W)" or mask.shape != image.shape[:2]:
        raise ConfigError(f"{where}: makes masks {_kind(mask)} that are none for its images; remove it")
    if not is_label[mask].all():
        label = mask[~is_label[mask]][0]
        raise ConfigError(f"{where}: makes label {label}, which is no class; a mask may be filled with {IGNORE} alone")
    return dict(result)


def _kind(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return f"of type {type(array).__name__}"
    if array.ndim == 3:
        return f"{array.dtype} (H, W, {array.shape[2]})"
    return f"{array.dtype} (H, W)" if array.ndim == 2 else f"{array.dtype} of {array.ndim} dimensions"


def _build(name: str, arguments: object, where: str) -> Any:
    known = {key: value for key, value in vars(A).items() if inspect.isclass(value) and key not in _NO_STEPS}
    known = {key: value for key, value in known.items() if issubclass(value, A.BasicTransform | A.BaseCompose)}
    if name not in known:
        hint = f" for a config: {_NO_STEPS[name]}" if name in _NO_STEPS else suggest(name, known)
        raise ConfigError(f"{where}: albumentations {A.__version__} has no such transform{hint}")
    kind = known[name]
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"{where}: its arguments must be names with values, such as {{p: 0.5}}")
    given = {key: _constant(value) for key, value in arguments.items()}
    _check_arguments(kind, given, where)
    if issubclass(kind, A.BaseCompose):
        if not isinstance(given["transforms"], list) or not given["transforms"]:
            raise ConfigError(f"{where}: transforms must be a list of one or more")
        given["transforms"] = listed_steps(given["transforms"], f"{where}.transforms")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step: Any = kind(**given)
    except Exception as error:
        raise ConfigError(f"{where}: {_cause(error, given)}") from error
    for warning in caught:
        if not _ADVICE.search(str(warning.message)):
            raise ConfigError(f"{where}: {printable(warning.message)}")
    if getattr(step, "fill_mask", None) is not None and "fill_mask" not in given:
        step.fill_mask = IGNORE  # its own 0 would be the first class; None leaves the labels under what is erased
    return step


def _check_arguments(kind: Any, given: Mapping[str, Any], where: str) -> None:
    """Refuses arguments that the transform does not take, would ignore, or must not have; and missing ones."""
    taken = inspect.signature(kind.__init__).parameters
    for key in given:
        if key not in taken or key == "self":
            raise ConfigError(f"{where}: has no argument {shorten(key)}{suggest(key, taken)}")
    missing = [key for key, entry in taken.items() if entry.default is entry.empty and key not in ("self", *given)]
    if issubclass(kind, A.BaseCompose) and "transforms" not in given:
        missing = ["transforms"]
    if missing:
        raise ConfigError(f"{where}: needs {' and '.join(missing)}")
    if given.get("mask_interpolation", cv2.INTER_NEAREST) not in _NEAREST:
        raise ConfigError(f"{where}: mask_interpolation must be nearest, or labels would be mixed; remove it")
    p = given.get("p", 0.5)
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ConfigError(f"{where}: p={shorten(p)}: must be a number from 0 to 1")


def _constant(value: object) -> object:
    """Returns OpenCV's number for a name such as BORDER_REFLECT_101 or cv2.INTER_AREA, and other values as they are."""
    found = _CONSTANT.fullmatch(value) if isinstance(value, str) else None
    return getattr(cv2, found[1], value) if found else value


def _cause(error: BaseException, given: Mapping[str, Any]) -> str:
    """Returns albumentations' error on one line; of pydantic's, the first argument and all that is said of it."""
    origin = error.__cause__
    if not isinstance(origin, ValidationError):
        return one_line(error)
    faults = origin.errors(include_url=False)
    argument = faults[0]["loc"][:1]
    said = dict.fromkeys(fault["msg"].removeprefix("Value error, ") for fault in faults if fault["loc"][:1] == argument)
    value = f"{argument[0]}={shorten(given.get(str(argument[0])))}: " if argument else ""
    return printable(value + "; or ".join(said))


def one_line(error: BaseException) -> str:
    """Returns what an error of albumentations says, on one line."""
    return printable(" ".join(str(error).split()) or type(error).__name__)

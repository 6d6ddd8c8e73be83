"""The adapter to albumentations: paired augmentation of images and masks, seeded draw by draw.

albumentations 2.0.8 gives every DataLoader worker the same random stream and fills what it pads in a mask with class 0.
Here the state is set for each draw, and padding becomes void.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.draws import draw_rng
from densekit.datasets.pictures import Pixels
from densekit.errors import ConfigError
from densekit.losses import IGNORE

AUGMENTATIONS = {
    "none": "a random crop",
    "light": "a random crop at scale 0.75 to 1.25 and a horizontal flip",
    "strong": "a random crop at scale 0.5 to 1.5, a horizontal flip, and changes of colour and sharpness",
    "microscopy": "as strong, in all eight orientations, with the hue of any stain, grey, and other exposures",
}
TRIES = 4  # of a listed pipeline on a picture before training


class Augment:
    """Crops and varies an image together with its mask.

    Args:
        steps: one of `AUGMENTATIONS`; or transforms of albumentations, each {name: {argument: value}}, after which
            comes a random crop, with nothing left to do where they end with one of that size.
        crop_size: side of the result in pixels; smaller images are padded, the mask with void.
        seed: of the run.
        focus: what a share of the crops is laid around, see `crops.find_corner`: "foreground", a pixel of any class but
            0; "balanced", one of a class drawn from those in the mask; "none".
        focus_share: that share, 0 to 1.

    Raises:
        ConfigError: a listed transform that there is not, or arguments that it does not take.
    """

    def __init__(
        self,
        steps: str | Sequence[Mapping[str, Any]],
        crop_size: int,
        seed: int,
        *,
        focus: str = "none",
        focus_share: float = 0.0,
    ) -> None:
        from densekit.datasets import pipelines

        crop = pipelines.crop_steps(crop_size, focus, focus_share)
        self.listed: list[Any] = [] if isinstance(steps, str) else pipelines.listed_steps(steps)
        self.compose: Any = pipelines.compose(
            pipelines.named_steps(steps, crop) if isinstance(steps, str) else [*self.listed, *crop]
        )
        self.seed = seed
        self.crop_size = crop_size
        self.focus = focus

    def __call__(
        self, image: Pixels, mask: Pixels, draw: int, counts: NDArray[np.int64] | None = None
    ) -> dict[str, Pixels]:
        """Returns {"image": (crop, crop, C), "mask": (crop, crop), ...} for an image (H, W, C) and mask (H, W), uint8.

        Args:
            image: (H, W, C).
            mask: (H, W).
            draw: number of the draw.
            counts: (256,), pixels of each id in the mask, where they are known.

        Raises:
            ConfigError: a listed transform cannot take the image.
        """
        self.compose.set_random_state(*self._state(draw))
        extra = {}
        if self.focus == "balanced":
            counts = np.bincount(mask.ravel(), minlength=256) if counts is None else counts
            extra["classes"] = np.flatnonzero(counts[:IGNORE])
        try:
            varied: dict[str, Pixels] = self.compose(image=image, mask=mask, **extra)
        except MemoryError:
            raise
        except Exception as error:
            from densekit.datasets.pipelines import KEY, one_line

            size = f"{mask.shape[1]}x{mask.shape[0]}"
            raise ConfigError(f"{KEY}: {one_line(error)} (a picture of {size}, draw {draw})") from error
        return varied

    def check(self, image: Pixels, mask: Pixels, is_label: NDArray[np.bool_]) -> None:
        """Passes a listed pipeline that can take an image and its mask, and leaves labels what they are.

        Args:
            image: (H, W, 3) uint8.
            mask: (H, W) uint8.
            is_label: (256,), whether a number may be in a mask.

        Raises:
            ConfigError: a transform fails, or makes something else than training takes, or the last one makes the very
                crop that focus is to lay; one line that names it.
        """
        from densekit.datasets.pipelines import KEY, try_step

        square = (self.crop_size, self.crop_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for draw in range(TRIES if self.listed else 0):
                self.compose.set_random_state(*self._state(draw))
                data = {"image": image, "mask": mask}
                for place, step in enumerate(self.listed):
                    data = try_step(step, data, f"{KEY}[{place}]", is_label)
                last = type(self.listed[-1]).__name__
                if self.focus != "none" and "Crop" in last and data["mask"].shape == square != mask.shape:
                    raise ConfigError(
                        f"data.focus={self.focus}: has nothing to choose, since {KEY} ends with {last} to "
                        f"{square[1]}x{square[0]}; remove one of the two"
                    )
                self(image, mask, draw)

    def _state(self, draw: int) -> tuple[np.random.Generator, random.Random]:
        return draw_rng(self.seed, draw), random.Random((self.seed << 40) | draw)  # noqa: S311

"""The adapter to albumentations: paired augmentation of images and masks, seeded draw by draw.

albumentations 2.0.8 gives every DataLoader worker the same random stream and fills what it pads in a mask with class 0.
Here the state is set for each draw, and padding becomes void.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densekit.datasets.draws import draw_rng
from densekit.losses import IGNORE

AUGMENTATIONS = {
    "none": "a random crop",
    "light": "a random crop at scale 0.75 to 1.25 and a horizontal flip",
    "strong": "a random crop at scale 0.5 to 1.5, a horizontal flip, and changes of colour and sharpness",
    "microscopy": "as strong, in all eight orientations, with the hue of any stain, grey, and other exposures",
}


class Augment:
    """Crops and varies an image together with its mask.

    Args:
        name: one of `AUGMENTATIONS`.
        crop_size: side of the result in pixels; smaller images are padded, the mask with void.
        seed: of the run.
    """

    def __init__(self, name: str, crop_size: int, seed: int) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask a host for a newer version
        import albumentations as A

        steps: list[Any] = []
        spread = {"none": 0.0, "light": 0.25, "strong": 0.5, "microscopy": 0.5}[name]
        if spread:
            steps.append(A.RandomScale((-spread, spread), p=1.0))
        steps += [
            A.PadIfNeeded(crop_size, crop_size, fill_mask=IGNORE),
            A.RandomCrop(crop_size, crop_size),
        ]
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
        self.compose = A.Compose(steps)
        self.seed = seed

    def __call__(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], draw: int) -> dict[str, NDArray[np.uint8]]:
        """Returns {"image": (crop, crop, C), "mask": (crop, crop)} for an image (H, W, C) and mask (H, W), uint8."""
        self.compose.set_random_state(draw_rng(self.seed, draw), random.Random((self.seed << 40) | draw))  # noqa: S311
        return self.compose(image=image, mask=mask)

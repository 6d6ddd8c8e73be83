"""Generated pictures, masks and configs for trainings that take a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densekit.config import Config
from densekit.image import Picture, read_mask, write_image, write_mask

COLOURS = np.array([  # of the classes: a network can learn them
    [30, 60, 200], [200, 180, 40], [60, 200, 90], [220, 40, 60], [40, 210, 220], [130, 130, 130], [240, 240, 240],
    [20, 20, 20], [150, 40, 200], [250, 140, 20], [120, 70, 20],
])  # fmt: skip


def make_picture(height: int, width: int, seed: int) -> np.ndarray:
    """A sum of waves and some noise: (height, width, 3) uint8 with edges that bicubic blurs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = sum(np.sign(np.sin(x * a + y * b)) for a, b in rng.uniform(0.1, 0.7, (4, 2)))
    picture = 128 + 24 * waves[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 2, (height, width, 3))
    return picture.clip(0, 255).astype(np.uint8)


def make_masked(height: int, width: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture in the colours of its mask, and the mask: (height, width) uint8 with every class."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, classes, (height // 8 + 1, width // 8 + 1))
    blocks.flat[:classes] = range(classes)
    ids = blocks.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)
    picture = COLOURS[ids] + rng.normal(0, 20, (height, width, 3))
    return picture.clip(0, 255).astype(np.uint8), ids


def write_pictures(folder: Path, count: int = 3, height: int = 40, width: int = 48, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        write_image(folder / f"{i}.png", Picture(make_picture(height, width, seed + i)))
    return folder


def write_masked(
    folder: Path, count: int = 3, height: int = 40, width: int = 48, seed: int = 0, classes: int = 3
) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for i in range(count):
        picture, ids = make_masked(height, width, seed + i, classes)
        write_image(folder / "images" / f"{i}.png", Picture(picture))
        write_mask(folder / "masks" / f"{i}.png", ids)
    return folder


def recolour(folder: Path, palette: np.ndarray) -> Path:
    """Turns the masks of `write_masked` from class numbers into colours (N, 3)."""
    for path in (folder / "masks").iterdir():
        ids = read_mask(path)
        write_image(path, Picture(palette[ids]))
    return folder


def make_config(task: str, model: dict, data: dict, optim: dict, train: dict) -> Config:
    return Config.model_validate({"task": task, "model": model, "data": data, "optim": optim, "train": train})


def sr_config(folder: Path, *, model: dict | None = None, data: dict | None = None, **train) -> Config:
    """A config of an RDN of 3 k parameters on the pictures in `folder`, which are also the validation data."""
    return make_config(
        "sr",
        {
            "name": "rdn",
            "scale": 2,
            "num_features": 8,
            "num_blocks": 1,
            "num_layers": 2,
            "growth_rate": 8,
            "upsampler": "pixelshuffledirect",
            "bicubic_skip": True,
            **(model or {}),
        },
        {"train": [str(folder)], "val": [str(folder)], **(data or {})},
        {"name": "adam", "learning_rate": 5e-3},
        {"total_steps": 12, "batch_size": 2, "crop_size": 12, "ema_decay": 0.5, "threads": 1, "log_every": 1}
        | {"eval_every": 6, "checkpoint_every": 4, "seed": 5, "samples": 1}
        | train,
    )


def seg_config(
    folder: Path, *, num_classes: int = 3, drop_rate: float = 0.2, data: dict | None = None, **train
) -> Config:
    """A config of an FC-DenseNet of 4 k parameters on `folder`/images and masks, which are also the validation data."""
    return make_config(
        "seg",
        {
            "name": "fc_densenet",
            "num_classes": num_classes,
            "num_init_features": 8,
            "growth_rate": 4,
            "num_pools": 2,
            "num_layers": 2,
            "drop_rate": drop_rate,
        },
        {"train": [str(folder)], "val": [str(folder)], "augment": "strong", **(data or {})},
        {"name": "adamw", "learning_rate": 2e-2, "clip_norm": 5.0},
        {"total_steps": 12, "batch_size": 2, "crop_size": 32, "ema_decay": 0.5, "threads": 1, "log_every": 1}
        | {"eval_every": 6, "checkpoint_every": 4, "seed": 5, "samples": 1}
        | train,
    )

"""Networks of the size that CPUs train learn a few real pictures by heart, each in about a minute of one core."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from densekit.config import Config, load_config
from densekit.image import Picture, read_image, read_mask, write_image, write_mask
from densekit.tasks import create_task
from densekit.train import train

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
OPTIM = {"name": "muon", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 20}
TRAIN = {"batch_size": 4, "seed": 1, "threads": 1, "log_every": 50, "checkpoint_every": 100_000, "samples": 0}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the pictures, ../shared/data, are not here"),
]


def figures_of(folder: Path, config: dict) -> dict[str, float]:
    """Trains on the pictures in `folder`, which are also those it is scored on."""
    data = {"train": [str(folder)], "val": [str(folder)], **config.pop("data", {})}
    settings = Config.model_validate({"optim": {**OPTIM, **config.pop("optim", {})}, "data": data, **config})
    return train(create_task(settings), settings, folder.parent / "run")


def test_the_embedded_x2_network_learns_four_patches_beyond_45_db(tmp_path):
    folder = tmp_path / "patches"
    folder.mkdir()
    paths = sorted((SHARED / "t91").glob("*.png"))
    for path in (paths[3], paths[20], paths[47], paths[70]):
        pixels = read_image(path).pixels
        top, left = pixels.shape[0] // 2 - 16, pixels.shape[1] // 2 - 16
        write_image(folder / path.name, Picture(pixels[top : top + 32, left : left + 32]))
    model = load_config("sr/rdn_tiny_x2").model.model_dump()
    steps = {"total_steps": 1000, "eval_every": 1000, "crop_size": 16, "ema_decay": 0.99, "loss": "l1"}
    figures = figures_of(
        folder, {"task": "sr", "model": model, "optim": {"clip_norm": 0.5}, "train": {**TRAIN, **steps}}
    )
    assert figures["psnr"] > 45  # in all eight orientations; bicubic has 33.1 dB there


def test_a_thin_fc_densenet_learns_eight_street_scenes_beyond_an_iou_of_095(tmp_path):
    folder = tmp_path / "street"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    masks = sorted((SHARED / "camvid" / "trainannot").glob("*.png"))[::46]
    assert len(masks) == 8
    for path in masks:
        (image,) = (SHARED / "camvid" / "train").glob(f"{path.stem}.*")
        middle = slice(60, 420)  # a square of 360 pixels, reduced to 64
        pixels = cv2.resize(read_image(image).pixels[:, middle], (64, 64), interpolation=cv2.INTER_AREA)
        write_image(folder / "images" / path.name, Picture(pixels))
        ids = cv2.resize(read_mask(path)[:, middle], (64, 64), interpolation=cv2.INTER_NEAREST)
        write_mask(folder / "masks" / path.name, ids)
    model = {
        "name": "fc_densenet",
        "num_classes": 11,
        "num_init_features": 16,
        "growth_rate": 16,
        "num_pools": 4,
        "num_layers": [1, 2, 3, 4, 5, 4, 3, 2, 1],
        "drop_rate": 0.0,
    }
    steps = {"total_steps": 280, "eval_every": 280, "crop_size": 64, "ema_decay": 0.9, "loss": "ce+lovasz"}
    figures = figures_of(
        folder,
        {
            "task": "seg",
            "model": model,
            "data": {"ignore_index": 11, "augment": "none"},
            "optim": {"clip_norm": 5.0},
            "train": {**TRAIN, **steps, "channels_last": False},
        },
    )
    assert figures["miou"] > 0.95

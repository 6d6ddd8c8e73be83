"""The pictures, masks and weights that the pages of the documentation speak of, drawn for each page."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from densekit.cards import Card
from densekit.dialects import write_foreign
from densekit.image import Picture, write_image, write_mask
from densekit.models import create_model
from densekit.pretrained import WEIGHTS
from densekit.resize import imresize
from tests.training_data import make_masked, make_picture
from tools.make_samples import FOLDER as SAMPLES

ROOT = Path(__file__).parents[1]


def prepare(page: str, folder: Path) -> None:
    """Writes what a page needs into a folder."""
    photographs(folder)
    cells(folder)
    if page.startswith("errors/"):
        odd_pictures(folder)
        odd_data(folder)
        odd_weights(folder)
        write_config(folder, "small.yaml", "{total_steps: 2, batch_size: 2, crop_size: 16}")
    if page == "tutorials/exchange.md":
        weights_of_others(folder)
    if page == "tutorials/reproduce.md":
        benchmark(folder)
        shutil.copytree(ROOT / "configs", folder / "configs")
        steps = "{total_steps: 6, batch_size: 2, crop_size: 16, eval_every: 3, checkpoint_every: 3}"
        write_config(folder, "small.yaml", steps)


def photographs(folder: Path) -> None:
    """One as JPEG and PNG, a cut one, a folder with another below it, and a TIFF of 16 bits."""
    shutil.copy(SAMPLES / "street.png", folder / "photo.png")
    shutil.copy(SAMPLES / "nuclei.png", folder / "cells.png")
    with Image.open(folder / "photo.png") as photo:
        photo.save(folder / "photo.jpg", quality=95)
    (folder / "broken.png").write_bytes((folder / "photo.png").read_bytes()[:2000])
    for seed, name in enumerate(("photos/beach.jpg", "photos/hut/dog.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, Picture(make_picture(48, 64, seed)))
    (folder / "scans").mkdir()
    grain = np.random.default_rng(0).integers(0, 200, (48, 64, 3), np.uint16)
    write_image(folder / "scans/plate.tif", Picture(make_picture(48, 64, 2).astype(np.uint16) * 256 + grain))


def cells(folder: Path) -> None:
    """Eight pictures with masks in cells/, three more in held_out/, and faulty/ with one that is no class."""
    for name, seeds in (("cells", range(8)), ("held_out", range(10, 13)), ("faulty", range(20, 24))):
        (folder / name / "images").mkdir(parents=True)
        (folder / name / "masks").mkdir()
        for i, seed in enumerate(seeds):
            picture, ids = make_masked(128, 128, seed, classes=2)
            write_image(folder / name / "images" / f"{i}.png", Picture(picture))
            write_mask(folder / name / "masks" / f"{i}.png", ids)
    (folder / "faulty/masks/3.png").unlink()


def benchmark(folder: Path) -> None:
    """Five pictures in Set5/, half as large in Set5_x2/, and results of another program in results/."""
    for name in ("Set5", "Set5_x2", "results"):
        (folder / name).mkdir()
    for i in range(5):
        hr = make_picture(48, 64, 30 + i)
        lr = imresize(hr, 1 / 2)
        for name, pixels in (("Set5", hr), ("Set5_x2", lr), ("results", imresize(lr, 2))):
            write_image(folder / name / f"{i}.png", Picture(pixels))


def write_config(folder: Path, name: str, train: str) -> None:
    """A config that trains on photos/ in a second."""
    lines = (
        "task: sr",
        "model: {name: rdn, scale: 2, num_features: 8, num_blocks: 2, num_layers: 2, growth_rate: 8}",
        "data: {train: photos/, val_share: 0.2}",
        f"train: {train}",
    )
    (folder / name).write_text("\n".join(lines) + "\n")


def odd_pictures(folder: Path) -> None:
    """Files that are no picture, or more than one, or of a kind that is not taken."""
    grey = Image.new("L", (8, 8), 100)
    (folder / "nothing_in.png").write_bytes(b"")
    (folder / "notes.png").write_text("a note")
    grey.save(folder / "film.gif")
    grey.save(folder / "pages.tif", save_all=True, append_images=[grey])
    Image.new("LAB", (8, 8)).save(folder / "lab.tif")
    Image.new("RGBA", (32, 24), (10, 200, 30, 128)).save(folder / "logo.png")
    for name in ("taken.png", "taken_x4.png", "one/a.png", "one/b.png", "two/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_image(folder / name, Picture(make_picture(24, 32, 1)))
    (folder / "empty").mkdir()


def odd_data(folder: Path) -> None:
    """Masks of another size in uneven/, of a class too many in labels/; results half as large; a config with faults."""
    for name in ("uneven", "labels"):
        shutil.copytree(folder / "cells", folder / name)
    write_mask(folder / "uneven/masks/0.png", np.zeros((30, 20), np.uint8))
    for path in (folder / "labels/masks").iterdir():
        write_mask(path, np.full((128, 128), 7, np.uint8))
    for name in ("beach.png", "hut/dog.png"):
        (folder / "small" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / "small" / name, Picture(make_picture(24, 32, 3)))
    lines = (
        "task: sr",
        "model: {name: rdn, scale: 2}",
        "data: {train: photos/, trian: photos/}",
        "train: {total_steps: -4, crop_size: 16}",
        "optim: {name: adan}",
    )
    (folder / "wrong.yaml").write_text("\n".join(lines) + "\n")


def odd_weights(folder: Path) -> None:
    """A checkpoint with one bit changed, one that is cut, and tensors of no network."""
    whole = bytearray((WEIGHTS / "rdn-tiny-x2.safetensors").read_bytes())
    (folder / "cut.safetensors").write_bytes(whole[:5000])
    whole[-100] ^= 1
    (folder / "damaged.safetensors").write_bytes(whole)
    save_file({"conv.weight": torch.rand(3, 3)}, folder / "strange.safetensors")
    save_file({"conv.weight": torch.rand(3, 3)}, folder / "plain.safetensors")


def weights_of_others(folder: Path) -> None:
    """A small network of ESRGAN's kind in 4x.pth, as BasicSR names its tensors."""
    arguments = {"scale": 4, "num_features": 16, "num_blocks": 2, "growth_rate": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = create_model("rrdbnet", **arguments)
    write_foreign(net.state_dict(), Card("sr", "rrdbnet", arguments), "basicsr", folder / "4x.pth")

"""Makes an embedded model of a finished training run.

    python -m tools.pack_weights runs/rdn_tiny_x2 rdn-tiny-x2

The averaged weights of the last step go to densekit/weights/NAME.safetensors in float16, with a card that names data,
licence, recipe and figures. The figures are those of the run's last evaluation, in float32; super-resolution gets
bicubic's beside its own, measured here on the same pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from densekit.cards import Card
from densekit.checkpoint import load_model, save_model
from densekit.config import Config, list_configs, load_config
from densekit.datasets.pairs import make_pair
from densekit.datasets.pictures import list_pictures, read_rgb
from densekit.errors import ConfigError, DensekitError
from densekit.metrics import psnr
from densekit.pretrained import WEIGHTS
from densekit.resize import imresize

MAX_TOTAL = 4_000_000  # bytes of all embedded models together


class Dataset(NamedTuple):
    """How a card calls a folder that a config names, and the licence of what is in it."""

    title: str
    licence: str


NUCLEI = "CC0"
CAMVID = "CC BY-NC 4.0 (CamVid), not for commercial use"
DATASETS = {
    "data/bsds400/images": Dataset("BSDS500 train and test (400 images)", "BSDS500: non-commercial research"),
    "data/t91/images": Dataset("T91 (91 images)", "T91: none stated"),
    "data/set5/images": Dataset("Set5 (5 images)", "Set5: none stated"),
    "data/camvid/train": Dataset("CamVid train (367 images)", CAMVID),
    "data/camvid/val": Dataset("CamVid val (101 images)", CAMVID),
    "data/nuclei/train": Dataset("Data Science Bowl 2018, 120 images", NUCLEI),
    "data/nuclei/val": Dataset("Data Science Bowl 2018, 40 other images", NUCLEI),
}


def datasets(folders: list[str]) -> list[Dataset]:
    """Returns the data sets in the folders that a config names, each once.

    Raises:
        ConfigError: a folder that is none of ours, so that nobody could train the model again.
    """
    for folder in folders:
        if folder not in DATASETS:
            raise ConfigError(f"{folder}: not a data set of data/; embedded models are trained on those alone")
    return [DATASETS[folder] for folder in dict.fromkeys(folders)]


def full_card(card: Card, config: Config, recipe: str) -> Card:
    """Returns a run's card with everything that a stranger wants to know of the model."""
    train, val = datasets(train_folders(config)), datasets(config.data.val)
    metrics = {key: round(value, 4) for key, value in card.metrics.items() if isinstance(value, float)}
    if config.task == "sr":
        scale, protocol = config.model.kwargs["scale"], card.metrics["protocol"]
        metrics["bicubic"] = round(bicubic_psnr(config.data.val, scale, protocol), 4)
    return dataclasses.replace(
        card,
        metrics={**metrics, "protocol": card.metrics["protocol"], "data": ", ".join(data.title for data in val)},
        data=", ".join(data.title for data in train),
        licence=config.data.licence or "; ".join(data.licence for data in train),
        recipe=recipe,
    )


def train_folders(config: Config) -> list[str]:
    """Returns the folders that a network was trained on, in the runs that this one goes on from too.

    Raises:
        ConfigError: it goes on from a run of no shipped config.
    """
    if config.train.initial_weights is None:
        return config.data.train
    before = load_config(f"{config.task}/{Path(config.train.initial_weights).parent.name}")
    return [*train_folders(before), *config.data.train]


def bicubic_psnr(folders: list[str], scale: int, protocol: str) -> float:
    """Returns the mean PSNR (dB) of bicubic upscaling on the pictures that a run was evaluated on."""
    pairs = [make_pair(read_rgb(path), scale) for path in list_pictures(folders)]
    return float(np.mean([psnr(imresize(lr, scale), hr, protocol=protocol, scale=scale) for lr, hr in pairs]))


def pack(run: Path, name: str) -> None:
    """Writes densekit/weights/NAME.safetensors from the run in a folder.

    Raises:
        ConfigError: the run is not finished or not of a shipped config, or the models would be too large together.
        CheckpointError: its weights cannot be read.
    """
    net, card = load_model(run / "last.safetensors")
    config = load_config(run / "config.yaml")
    recipe = f"{config.task}/{name.replace('-', '_')}"
    if recipe not in list_configs():
        raise ConfigError(f"{name}: no shipped config {recipe}, so nobody could train it again")
    if card.step < config.train.total_steps or not card.metrics:
        raise ConfigError(f"{run}: at step {card.step} of {config.train.total_steps}; finish it with --resume")
    path = WEIGHTS / f"{name}.safetensors"
    previous = path.read_bytes() if path.exists() else None
    save_model(path, net, full_card(card, config, recipe), half=True)
    total = sum(file.stat().st_size for file in WEIGHTS.glob("*.safetensors"))
    print(f"{path.name}: {path.stat().st_size} bytes; all models: {total} of {MAX_TOTAL}")
    if total > MAX_TOTAL:
        path.unlink() if previous is None else path.write_bytes(previous)
        raise ConfigError(f"{name} would make the embedded models larger than {MAX_TOTAL} bytes together; not packed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as runs/rdn_tiny_x2")
    parser.add_argument("name", metavar="NAME", help="of the model, such as rdn-tiny-x2; its config has the same")
    arguments = parser.parse_args()
    try:
        pack(arguments.run, arguments.name)
    except DensekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The embedded models give the figures that their cards and the README state, on the data they name."""

from pathlib import Path

import numpy as np
import pytest

import densekit
from densekit.datasets.masks import read_pair
from densekit.datasets.pairs import make_pair
from densekit.datasets.pictures import list_pictures, read_rgb
from densekit.losses import IGNORE
from densekit.metrics import ConfusionMatrix, psnr
from densekit.pretrained import WEIGHTS, trained_cards

DATA = Path(__file__).parents[2] / "shared" / "data"
NAMES = ["fc-densenet-camvid", "fc-densenet-nuclei", "rdn-tiny-x2", "rdn-tiny-x4"]

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the measuring data, ../shared/data, is not here")


def test_four_models_are_embedded_in_at_most_four_megabytes():
    assert sorted(trained_cards()) == NAMES
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) <= 4_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_data_licence_recipe_and_a_figure_with_its_protocol(name):
    card = trained_cards()[name]
    assert card.data
    assert card.licence
    assert card.recipe == f"{card.task}/{name.replace('-', '_')}"
    assert card.metrics["protocol"]
    assert card.metrics["data"]


@needs_data
@pytest.mark.parametrize(("name", "least"), [("rdn-tiny-x2", 37.6), ("rdn-tiny-x4", 31.4)])
def test_super_resolution_reaches_its_stated_psnr_on_set5(name, least):
    model = densekit.load(name)
    pairs = [make_pair(read_rgb(path), model.scale) for path in list_pictures([DATA / "set5" / "HR"])]
    figure = np.mean([psnr(model.predict(lr), hr, protocol="rdn-y", scale=model.scale) for lr, hr in pairs])
    stated = model.card.metrics
    assert figure == pytest.approx(stated["psnr"], abs=0.005)  # the figure is of float32 weights, these are float16
    assert figure >= least


def confusion(name: str, images: Path, masks: Path, ignore_index: int, step: int = 1) -> ConfusionMatrix:
    model = densekit.load(name)
    matrix = ConfusionMatrix(len(model.classes), ignore_index=IGNORE)
    for path in list_pictures([images])[::step]:
        mask = next(masks.glob(f"{path.stem}.*"))
        pixels, ids = read_pair(path, mask, len(model.classes), ignore_index)
        matrix.update(model.predict(pixels), ids)
    return matrix


@needs_data
def test_nuclei_reach_their_stated_foreground_iou_on_the_validation_images():
    matrix = confusion("fc-densenet-nuclei", DATA / "nuclei/val/image", DATA / "nuclei/val/mask", 255)
    assert matrix.iou()[1] == pytest.approx(trained_cards()["fc-densenet-nuclei"].metrics["iou"], abs=0.002)
    assert matrix.iou()[1] >= 0.82


@needs_data
@pytest.mark.slow
def test_camvid_reaches_its_stated_miou_on_all_validation_images():
    matrix = confusion("fc-densenet-camvid", DATA / "camvid/val", DATA / "camvid/valannot", 11)
    assert matrix.miou() == pytest.approx(trained_cards()["fc-densenet-camvid"].metrics["miou"], abs=0.002)


@needs_data
def test_camvid_comes_near_its_stated_miou_on_every_tenth_validation_image():
    matrix = confusion("fc-densenet-camvid", DATA / "camvid/val", DATA / "camvid/valannot", 11, step=10)
    assert matrix.miou() == pytest.approx(trained_cards()["fc-densenet-camvid"].metrics["miou"], abs=0.08)

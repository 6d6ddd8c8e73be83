from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from densekit.config import Config
from densekit.errors import ConfigError, DataError
from densekit.image import Picture, write_image, write_mask
from densekit.losses import cross_entropy, dice
from densekit.tasks import create_task
from densekit.tasks.seg import Segmentation
from tests.training_data import make_masked, seg_config, write_masked

CAMVID = Path(__file__).resolve().parents[3] / "shared" / "data" / "camvid"

# Name, training pixels, median-frequency weight and validation pixels of each class, from the annotations.
KNOWN = [
    ("Sky", 10_682_767, 0.2793, 1_601_620),
    ("Building", 14_750_079, 0.2017, 4_531_180),
    ("Pole", 623_349, 4.7865, 98_499),
    ("Road", 20_076_880, 0.1490, 5_053_176),
    ("Pavement", 2_845_085, 1.0000, 1_521_751),
    ("Tree", 6_166_762, 0.4217, 2_851_125),
    ("SignSymbol", 743_859, 3.8467, 155_724),
    ("Fence", 714_595, 1.9736, 537_197),
    ("Car", 3_719_877, 0.7889, 304_716),
    ("Pedestrian", 405_385, 6.3747, 113_531),
    ("Bicyclist", 184_967, 8.8587, 387_010),
]


class Constant(nn.Module):
    """Answers one class everywhere; with a channel for each class, or one logit."""

    def __init__(self, answer, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.bias.data[answer if channels > 1 else 0] = 1 if channels > 1 or answer else -1

    def forward(self, x):
        return self.bias[:, None, None].expand(len(x), -1, *x.shape[2:])


@pytest.fixture(scope="module")
def camvid():
    if not CAMVID.is_dir():
        pytest.skip("needs ../shared/data/camvid")
    folders = [str(CAMVID / name) for name in ("train", "trainannot", "val", "valannot")]
    data = dict(zip(("train", "masks", "val", "val_masks"), ([folder] for folder in folders), strict=True))
    data |= {"classes": [name for name, *_ in KNOWN], "ignore_index": 11}
    config = seg_config(CAMVID, num_classes=11, data=data, class_weights="median-freq")
    return Segmentation(Config.model_validate({**config.model_dump(), "eval": {"protocol": "camvid11-360x480"}}))


def test_camvid_has_the_known_pixels_of_each_class(camvid):
    listed = json.loads((CAMVID / "classes.json").read_text())["classes"]
    assert [entry["name"] for entry in listed[:11]] == [name for name, *_ in KNOWN]
    assert (len(camvid.data), len(camvid.val)) == (367, 101)
    assert camvid.data.class_pixels(11)[0].tolist() == [pixels for _, pixels, _, _ in KNOWN]
    assert camvid.val.class_pixels(11)[0].tolist() == [pixels for *_, pixels in KNOWN]


def test_camvid_has_the_known_median_frequency_weights(camvid):
    assert camvid._class_weights().tolist() == pytest.approx([weight for _, _, weight, _ in KNOWN], abs=6e-5)


def test_an_answer_of_road_everywhere_has_the_known_figures(camvid):
    figures = camvid.evaluate(Constant(3, 11))
    assert figures["accuracy"] == pytest.approx(0.294551, abs=5e-7)
    assert figures["miou"] == pytest.approx(0.026777, abs=5e-7)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return write_masked(tmp_path_factory.mktemp("seg") / "masked")


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    return write_masked(tmp_path_factory.mktemp("seg") / "nuclei", classes=2)


def test_a_share_of_the_images_validates_and_is_not_trained_on(tmp_path):
    folder = write_masked(tmp_path / "data", 5)
    task = create_task(seg_config(folder, data={"val": [], "val_share": 0.3}))
    assert (len(task.data), len(task.val)) == (3, 2)
    assert not set(task.data.paths) & set(task.val.paths)
    assert task.evaluate(Constant(1, 3))["miou"] > 0
    again = create_task(seg_config(folder, data={"val": [], "val_share": 0.3}))
    assert again.val.paths == task.val.paths


def test_lists_name_the_images_of_each_part(tmp_path):
    folder = write_masked(tmp_path / "data", 4)
    for name, numbers in (("train", (0, 1, 2)), ("val", (3,))):
        for part in ("images", "masks"):
            (folder / f"{name}_{part}.txt").write_text("".join(f"{part}/{i}.png\n" for i in numbers))
    keys = {"train": "train_images", "masks": "train_masks", "val": "val_images", "val_masks": "val_masks"}
    task = create_task(seg_config(folder, data={key: [str(folder / f"{name}.txt")] for key, name in keys.items()}))
    assert [path.name for path in task.data.origins] == ["0.png", "1.png", "2.png"]
    assert [path.name for path in task.val.origins] == ["3.png"]


def test_focus_of_the_config_lays_the_crops(tmp_path):
    """A class of 4 pixels in 64x64: in every crop instead of one in 20."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    ids = np.zeros((64, 64), np.uint8)
    ids[30:32, 50:52] = 1
    write_image(tmp_path / "images" / "a.png", Picture(make_masked(64, 64, 0)[0]))
    write_mask(tmp_path / "masks" / "a.png", ids)
    for focus, least, most in (("none", 0, 0.6), ("foreground", 1, 1)):
        data = {"focus": focus, "focus_share": 1.0, "augment": "none"}
        task = create_task(seg_config(tmp_path, num_classes=1, crop_size=16, data=data))
        shown = np.mean([(task.data[draw, 0][1] == 1).any().item() for draw in range(100)])
        assert least <= shown <= most


def with_protocol(config, protocol):
    return Config.model_validate({**config.model_dump(), "eval": {"protocol": protocol}})


def test_a_binary_network_is_scored_by_the_iou_of_its_foreground(nuclei):
    task = create_task(seg_config(nuclei, num_classes=1))
    assert (task.metric, task.protocol, task.ids) == ("iou", "binary", 2)
    own, _ = task.val.class_pixels(2)
    share = own[1] / own.sum()
    assert task.evaluate(Constant(1, 1)) == pytest.approx({"iou": share, "accuracy": share})
    assert task.evaluate(Constant(0, 1)) == pytest.approx({"iou": 0, "accuracy": 1 - share})


def test_the_loss_is_that_of_the_config(masked):
    task = create_task(seg_config(masked, loss="ce+dice", class_weights="sqrt-median-freq", drop_rate=0.0))
    net = task.build_model().eval()
    images, ids = next(task.train_batches(0))
    assert (images.dtype, ids.dtype) == (torch.uint8, torch.uint8)
    logits, weights = net(images / 255), task._class_weights()
    expected = cross_entropy(logits, ids.long(), weights) + dice(logits, ids.long())
    torch.testing.assert_close(task.loss(net, (images, ids)), expected)
    plain = create_task(seg_config(masked, class_weights="median-freq"))._class_weights()
    torch.testing.assert_close(weights**2, plain)
    assert create_task(seg_config(masked))._class_weights() is None


def test_the_card_names_classes_palette_and_protocol(masked):
    data = {"classes": ["a", "b", "c"], "palette": [[0, 0, 0], [1, 2, 3], [255, 0, 0]], "licence": "CC0"}
    card = create_task(seg_config(masked, data=data)).card(3, {"miou": 0.5})
    assert (card.task, card.model, card.classes, card.licence) == ("seg", "fc_densenet", ("a", "b", "c"), "CC0")
    assert card.palette == ((0, 0, 0), (1, 2, 3), (255, 0, 0))
    assert card.metrics == {"miou": 0.5, "protocol": "dataset-iou", "data": str(masked)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_classes": None},
            "model.num_classes=None: task seg needs the number of classes, 1 to 255; 1 means foreground",
        ),
        ({"num_classes": 256}, "model.num_classes=256: task seg needs the number of classes, 1 to 255"),
        (
            {"num_classes": 0, "data": {"classes": ["a", "b", "c"]}},
            "model.num_classes=0: task seg needs the number of classes, 1 to 255, such as 3 for your data.classes",
        ),
        ({"data": {"classes": ["a", "b"]}}, "data.classes: has 2 names, but model.num_classes=3 needs 3"),
        (
            {"num_classes": 1, "data": {"classes": ["nucleus"]}},
            "data.classes: has 1 names, but model.num_classes=1 needs 2 (background, foreground)",
        ),
        (
            {"loss": "dice", "class_weights": "median-freq"},
            "train.class_weights: goes with ce or bce or focal or bfocal or ohem, but train.loss='dice' has none",
        ),
        ({"loss": "0*ce+dice"}, "train.loss='0*ce+dice': '0*ce' needs a number above 0 before *, such as 0.5"),
        (
            {"loss": "lovasz", "label_smoothing": 0.1},
            "train.label_smoothing: goes with ce or bce, but train.loss='lovasz' has none of these",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_any_picture_is_read(tmp_path, options, message):
    with pytest.raises(ConfigError) as error:
        create_task(seg_config(tmp_path / "absent", **options))
    assert message in str(error.value)


@pytest.mark.parametrize(("classes", "protocol"), [(3, "binary"), (1, "dataset-iou"), (3, "camvid11-360x480")])
def test_a_protocol_of_other_classes_is_refused(masked, nuclei, classes, protocol):
    config = seg_config(nuclei if classes == 1 else masked, num_classes=classes)
    with pytest.raises(ConfigError, match=f"eval.protocol={protocol}: does not go with model.num_classes={classes}"):
        create_task(with_protocol(config, protocol))


def test_the_camvid_protocol_takes_pictures_of_its_size_only(masked):
    with pytest.raises(DataError, match=r"0\.png: 48x40, but protocol camvid11-360x480 needs 480x360"):
        create_task(with_protocol(seg_config(masked, num_classes=11), "camvid11-360x480"))


def test_masks_in_which_the_foreground_is_255_are_not_taken_as_void(tmp_path):
    """The commonest binary masks hold 0 and 255, and 255 is void: nothing but background would be left."""
    write_masked(tmp_path / "data", classes=2)
    for path in (tmp_path / "data" / "masks").iterdir():
        write_mask(path, make_masked(40, 48, 0, 2)[1] * np.uint8(255))
    message = r"data: masks of class 0 and void \(data\.ignore_index=255\) alone; write class numbers 0\.\.1 into them"
    with pytest.raises(DataError, match=message):
        create_task(seg_config(tmp_path / "data", num_classes=1))


def test_validation_without_any_label_has_no_figure(tmp_path, masked):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    write_image(tmp_path / "images" / "a.png", Picture(make_masked(16, 16, 0)[0]))
    write_mask(tmp_path / "masks" / "a.png", np.full((16, 16), 255, np.uint8))
    figures = create_task(seg_config(masked, data={"val": [str(tmp_path)]})).evaluate(Constant(1, 3))
    assert np.isnan([figures["miou"], figures["accuracy"]]).all()

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from torch import nn

import densekit
from densekit.cards import Card
from densekit.checkpoint import load_model, save_model
from densekit.errors import ConfigError, DataError
from densekit.evaluate import evaluate_seg
from densekit.image import Picture, read_image, read_mask, write_image, write_mask
from densekit.predict.segment import Segmenter
from tests.training_data import make_picture

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the measuring data, ../shared/data, is not here")

SIZES = {"a.png": (24, 32), "b.png": (24, 32), "c.png": (17, 23)}


@pytest.fixture(scope="module")
def segmenter(tiny_seg):
    return densekit.load(tiny_seg, device="cpu")


@pytest.fixture
def data(tmp_path, write_pictures, write_masks):
    return write_pictures(tmp_path / "images", SIZES), write_masks(tmp_path / "masks", SIZES)


def pixels_of(masks, predictions):
    """All labels and predictions of two folders, void left out."""
    pairs = [(read_mask(path).ravel(), read_mask(predictions / path.name).ravel()) for path in sorted(masks.iterdir())]
    target, found = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return target[target != 255], found[target != 255]


def test_figures_are_those_of_all_pixels_together_as_scikit_learn_counts_them(tmp_path, write_masks):
    masks = write_masks(tmp_path / "masks", SIZES)
    predictions = write_masks(tmp_path / "out", SIZES, void=0, seed=1)
    evaluation = evaluate_seg(None, None, masks, predictions=predictions, num_classes=3)
    target, found = pixels_of(masks, predictions)
    known = jaccard_score(target, found, average=None)
    assert evaluation.per_class["iou"] == pytest.approx(known)
    assert evaluation.summary["miou"] == pytest.approx(known.mean())
    assert evaluation.summary["accuracy"] == pytest.approx(accuracy_score(target, found))
    assert evaluation.matrix.sum() == len(target) == int(evaluation.conditions["valid_pixels"])
    assert evaluation.conditions["protocol"] == "dataset-iou"
    assert evaluation.conditions["ignore_index"] == "255"
    assert "bn_mode" not in evaluation.conditions
    assert (evaluation.metric, evaluation.classes) == ("miou", ("class 0", "class 1", "class 2"))


def test_a_model_is_scored_on_what_predict_makes_of_the_images(segmenter, data, tmp_path):
    images, masks = data
    evaluation = evaluate_seg(segmenter, images, masks)
    predictions = tmp_path / "predicted"
    predictions.mkdir()
    for path in images.iterdir():
        write_mask(predictions / f"{path.stem}_mask.png", segmenter.predict(path))
    folders = evaluate_seg(None, None, masks, predictions=predictions, num_classes=3)
    np.testing.assert_array_equal(evaluation.matrix, folders.matrix)
    assert [row.figures for row in evaluation.rows] == [row.figures for row in folders.rows]
    assert evaluation.classes == ("road", "sky", "tree")
    assert evaluation.palette == segmenter.palette
    assert {key: evaluation.conditions[key] for key in ("bn_mode", "tile")} == {"bn_mode": "running", "tile": "whole"}


def test_windows_are_used_and_recorded(segmenter, tmp_path, write_pictures, write_masks):
    sizes = {"a.png": (40, 64)}
    images, masks = write_pictures(tmp_path / "i", sizes), write_masks(tmp_path / "m", sizes)
    evaluation = evaluate_seg(segmenter, images, masks, tile=32)
    assert evaluation.conditions["tile"] == "32"
    ids = segmenter.predict(images / "a.png", tile=32)
    np.testing.assert_array_equal(
        evaluation.matrix.sum(0), np.bincount(ids[read_mask(masks / "a.png") != 255], None, 3)
    )


def test_grey_and_deep_pictures_go_through_as_in_predict(segmenter, tmp_path, write_masks):
    deep = make_picture(24, 24, 0).astype(np.uint16) * 257
    for name, picture in (("grey", deep[..., :1]), ("deep", deep)):
        images, masks = tmp_path / f"i{name}", write_masks(tmp_path / f"m{name}", {"a.png": (24, 24)}, void=0)
        images.mkdir()
        write_image(images / "a.png", Picture(picture))
        matrix = evaluate_seg(segmenter, images, masks).matrix
        np.testing.assert_array_equal(matrix.sum(0), np.bincount(segmenter.predict(images / "a.png").ravel(), None, 3))


def test_what_is_wrong_with_a_picture_is_its_error_and_its_pixels_count_nowhere(segmenter, data, write_masks):
    images, masks = data
    good = evaluate_seg(segmenter, images, masks)
    for name in ("broken", "lonely", "larger", "labels"):
        write_image(images / f"{name}.png", Picture(make_picture(24, 32, 5)))
    (images / "broken.png").write_bytes(b"no picture")
    write_masks(masks, {"broken.png": (24, 32), "larger.png": (24, 33)})
    write_masks(masks, {"labels.png": (24, 32)}, void=7)
    evaluation = evaluate_seg(segmenter, images, masks)
    errors = {row.name: row.error for row in evaluation.rows if row.error}
    assert errors["broken.png"].startswith(f"{images}/broken.png: not a PNG, JPEG, TIFF")
    assert errors["lonely.png"] == f"{images}/lonely.png: no picture of that name in {masks}; add one, or remove this"
    assert errors["larger.png"] == f"{images}/larger.png: 32x24, but larger.png is 33x24; expected the same size"
    assert errors["labels.png"].startswith(f"{images}/labels.png: found label 7 at ")
    np.testing.assert_array_equal(evaluation.matrix, good.matrix)
    assert evaluation.conditions["pictures"] == "mean of 3 of 7 (4 failed)"
    assert [row.name for row in evaluation.rows] == sorted(row.name for row in evaluation.rows)


def test_a_temperature_fitted_on_other_pictures_calibrates_a_model_that_is_too_sure(
    tmp_path, write_pictures, segmenter, data
):
    others, labels = write_pictures(tmp_path / "others", SIZES, seed=5), tmp_path / "labels"
    labels.mkdir()
    rng = np.random.default_rng(0)
    for images, masks in ((others, labels), data):  # the model is right in 70 % of the pixels, and surer than that
        for path in sorted(images.iterdir()):
            ids = segmenter.predict(path)
            wrong = rng.random(ids.shape) < 0.3
            write_mask(masks / path.name, np.where(wrong, (ids + 1) % 3, ids).astype(np.uint8))
    net = copy.deepcopy(segmenter.net)
    last = [module for module in net.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight *= 50
        last.bias *= 50
    sure = Segmenter(net, segmenter.card)
    evaluation = evaluate_seg(sure, *data, held_out=(others, labels))
    value, where = evaluation.conditions["temperature"].split(", fitted on ")
    assert (float(value) > 2, where) == (True, str(others))
    assert evaluation.summary["tempered_ece"] < evaluation.summary["ece"] / 2
    assert evaluation.summary["tempered_brier"] < evaluation.summary["brier"]
    assert {"calibration", "tempered-calibration"} <= evaluation.curves.keys()


def test_a_temperature_is_not_fitted_on_what_is_scored(segmenter, data):
    with pytest.raises(ConfigError, match="images: the pictures that are scored; fit the temperature on others"):
        evaluate_seg(segmenter, *data, held_out=data)


def test_a_held_out_picture_without_a_mask_ends_the_evaluation(segmenter, data, tmp_path, write_pictures):
    others = write_pictures(tmp_path / "others", {"z.png": (16, 16)})
    with pytest.raises(DataError, match=r"z.png"):
        evaluate_seg(segmenter, *data, held_out=(others, data[1]))


def test_a_binary_network_has_the_foregrounds_iou(tiny_binary, tmp_path, write_pictures, write_masks):
    images, masks = write_pictures(tmp_path / "i", SIZES), write_masks(tmp_path / "m", SIZES, num_classes=2)
    evaluation = evaluate_seg(densekit.load(tiny_binary, device="cpu"), images, masks)
    assert (evaluation.metric, evaluation.conditions["protocol"]) == ("iou", "binary")
    assert evaluation.summary["iou"] == evaluation.per_class["iou"][1]


def test_masks_of_0_and_255_are_not_taken_for_void_in_silence(tiny_binary, tmp_path, write_pictures):
    images, masks = write_pictures(tmp_path / "i", {"a.png": (16, 16)}), tmp_path / "m"
    masks.mkdir()
    write_mask(masks / "a.png", np.where(np.eye(16), 255, 0).astype(np.uint8))
    with pytest.raises(DataError, match="m: no label 1, but 255, which is ignored; expected 1 for the foreground"):
        evaluate_seg(densekit.load(tiny_binary, device="cpu"), images, masks)


def test_calibration_and_outlines_are_measured_if_asked_for(segmenter, data):
    images, masks = data
    plain = evaluate_seg(segmenter, images, masks)
    assert "ece" not in plain.summary
    assert not plain.curves
    evaluation = evaluate_seg(segmenter, images, masks, calibration=True, boundary=2)
    assert {"ece", "brier", "aurc", "boundary_miou", "boundary_f1"} <= evaluation.summary.keys()
    assert 0 <= evaluation.summary["ece"] <= 1
    confidence, accuracy = zip(*evaluation.curves["calibration"], strict=True)
    assert all(1 / 3 <= value <= 1 for value in confidence)
    assert min(accuracy) <= evaluation.summary["accuracy"] <= max(accuracy)
    assert evaluation.curves["risk-coverage"][-1] == pytest.approx((1, 1 - evaluation.summary["accuracy"]))
    assert evaluation.conditions["boundary_width"] == "2 px"
    assert {"boundary_iou", "boundary_f1"} <= evaluation.per_class.keys()
    np.testing.assert_array_equal(evaluation.matrix, plain.matrix)


def test_what_there_is_to_see_is_made_when_it_is_asked_for(segmenter, data):
    images, masks = data
    parts = evaluate_seg(segmenter, images, masks).rows[2].pictures()
    assert list(parts) == ["image", "prediction", "target", "wrong"]
    assert all(part.shape == (17, 23, 3) and part.dtype == np.uint8 for part in parts.values())
    target, ids = read_mask(masks / "c.png"), segmenter.predict(images / "c.png")
    np.testing.assert_array_equal(parts["prediction"], np.array(segmenter.palette, np.uint8)[ids])
    np.testing.assert_array_equal(parts["target"][target == 255], 0)
    shown = (parts["wrong"] == (255, 0, 255)).all(axis=2)
    np.testing.assert_array_equal(shown, (ids != target) & (target != 255))
    np.testing.assert_array_equal(parts["image"], read_image(images / "c.png").pixels)


def test_predicted_masks_show_their_images_where_they_are_given(data, tmp_path, write_masks):
    images, masks = data
    predictions = write_masks(tmp_path / "out", SIZES, void=0)
    rows = evaluate_seg(None, images, masks, predictions=predictions, num_classes=3).rows
    assert list(rows[0].pictures()) == ["image", "prediction", "target", "wrong"]
    rows = evaluate_seg(None, None, masks, predictions=predictions, num_classes=3).rows
    assert list(rows[0].pictures()) == ["prediction", "target", "wrong"]


def test_a_prediction_alone_is_that_inside_any_set_but_with_batch_statistics(segmenter, data):
    images, masks = data
    alone = evaluate_seg(segmenter, images, masks)
    assert evaluate_seg(segmenter, images, masks, batch_size=2).rows[0].figures == alone.rows[0].figures
    one = evaluate_seg(segmenter, images, masks, bn="batch")
    two = evaluate_seg(segmenter, images, masks, bn="batch", batch_size=2)
    assert one.conditions["bn_mode"] == two.conditions["bn_mode"] == "batch"
    assert (one.conditions["batch_size"], two.conditions["batch_size"]) == ("1", "2")
    assert not np.array_equal(one.matrix, two.matrix)
    assert one.rows[2].figures == two.rows[2].figures  # another size, so it is alone in both
    parts = two.rows[1].pictures()
    shown = (parts["wrong"] == (255, 0, 255)).all(axis=2).sum()
    valid = (read_mask(masks / "b.png") != 255).sum()
    assert shown == round((1 - two.rows[1].figures["accuracy"]) * valid)  # with its neighbour, as it was scored


def test_a_network_without_running_statistics_predicts_only_if_batch_statistics_are_asked_for(tiny_seg, tmp_path, data):
    net, card = load_model(tiny_seg)
    fields = {name: getattr(card, name) for name in ("task", "model", "arguments", "classes", "palette")}
    save_model(tmp_path / "batch.safetensors", net, Card(**fields, bn_mode="batch"))
    model = densekit.load(tmp_path / "batch.safetensors", device="cpu")
    with pytest.raises(ConfigError, match=r"bn_mode batch\); recalibrate it with densekit bn recalibrate, or ask for"):
        evaluate_seg(model, *data)
    assert evaluate_seg(model, *data, bn="batch").conditions["bn_mode"] == "batch"


@needs_data
def test_camvids_protocol_knows_its_split_and_the_constant_predictor_has_its_known_figures(tmp_path):
    masks = DATA / "camvid" / "valannot"
    for path in masks.iterdir():
        write_mask(tmp_path / path.name, np.full(read_mask(path).shape, 3, np.uint8))
    evaluation = evaluate_seg(None, None, masks, predictions=tmp_path, protocol="camvid11-360x480")
    assert evaluation.summary["accuracy"] == pytest.approx(0.294551, abs=1e-6)
    assert evaluation.summary["miou"] == pytest.approx(0.026777, abs=1e-6)
    assert evaluation.conditions["split"] == "camvid11-360x480 val"
    assert evaluation.conditions["ignore_index"] == "11"
    assert evaluation.classes[3] == "Road"


def test_a_protocol_holds_pictures_to_its_size(tmp_path, write_masks):
    masks = write_masks(tmp_path / "m", {"a.png": (36, 48)}, void=11)
    evaluation = evaluate_seg(None, None, masks, predictions=masks, protocol="camvid11-360x480")
    assert evaluation.rows[0].error.startswith(f"{masks}/a.png: 48x36, but protocol camvid11-360x480 needs 480x360")
    assert evaluation.summary == {"miou": None}


def test_cityscapes_ids_become_class_numbers_but_train_ids_stay(tmp_path):
    ids, numbers = np.full((1024, 2048), 7, np.uint8), np.full((1024, 2048), 0, np.uint8)
    ids[0, :2], numbers[0, :2] = (8, 4), (1, 255)  # sidewalk; static, which is no class
    for folder, name, values in (
        ("a", "x_labelIds", ids),
        ("b", "x_labelTrainIds", numbers),
        ("out", "x", numbers % 255),
    ):
        (tmp_path / folder).mkdir()
        write_mask(tmp_path / folder / f"{name}.png", values)
    (tmp_path / "out" / "x.png").rename(tmp_path / "out" / "x_labelIds.png")
    write_mask(tmp_path / "out" / "x_labelTrainIds.png", numbers % 255)
    for folder in ("a", "b"):
        matrix = evaluate_seg(
            None, None, tmp_path / folder, predictions=tmp_path / "out", protocol="cityscapes19"
        ).matrix
        assert matrix[0, 0] == 1024 * 2048 - 2
        assert (matrix[1, 1], matrix.sum()) == (1, 1024 * 2048 - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "camvid11"}, r"protocol 'camvid11' is unknown; .*did you mean 'camvid11-360x480'\?"),
        ({"protocol": "camvid11-360x480"}, "protocol camvid11-360x480 has 11 classes, found 3"),
        ({"protocol": "binary"}, "protocol binary has 2 classes, found 3"),
        ({"num_classes": 4}, "num_classes 4: the model has 3; leave it out"),
        ({"ignore_index": 2}, "ignore_index 2 is one of the 3 classes"),
        ({"bn": "batches"}, "bn 'batches': expected running or batch"),
        ({"bn": "batch", "tile": 32}, "tile 32 with bn batch: each window would have statistics of its own"),
        ({"predictions": "out"}, "give either a model and a folder of images, or a folder of predictions"),
    ],
)
def test_wrong_options_are_refused_before_any_work(segmenter, data, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_seg(segmenter, *data, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the number of classes is not known; give --num-classes N"),
        ({"num_classes": 1}, "num_classes 1: expected 2 to 256; a binary task has 2"),
        ({"num_classes": 3, "calibration": True}, "calibration needs a model; predicted masks say only classes"),
        ({"num_classes": 3, "bn": "batch"}, "bn needs a model"),
    ],
)
def test_wrong_options_of_two_folders_are_refused(data, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_seg(None, None, data[1], predictions=data[1], **options)

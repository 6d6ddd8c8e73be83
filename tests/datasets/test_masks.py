from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch

from densekit.datasets.masks import MaskedImages, pair_masks, read_pair
from densekit.datasets.pictures import median_frequency_weights
from densekit.errors import DataError
from densekit.image import Picture, write_image, write_mask
from densekit.losses import IGNORE
from tests.training_data import make_masked, write_masked


def write_one(folder, ids, name="a"):
    (folder / "images").mkdir(exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    image, mask = folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"
    write_image(image, Picture(make_masked(*ids.shape, 0)[0]))
    write_mask(mask, ids)
    return image, mask


def test_pairs_are_made_by_name_below_folders_too(tmp_path):
    for part in ("b", "a/deep"):
        (tmp_path / "images" / part).mkdir(parents=True)
        (tmp_path / "masks" / part).mkdir(parents=True)
        write_image(tmp_path / "images" / part / "x.jpg", Picture(make_masked(8, 8, 0)[0]))
        write_mask(tmp_path / "masks" / part / "x.png", make_masked(8, 8, 0)[1])
    expected = [(tmp_path / "images" / p / "x.jpg", tmp_path / "masks" / p / "x.png") for p in ("a/deep", "b")]
    assert pair_masks([str(tmp_path)], []) == expected
    assert pair_masks([str(tmp_path / "images")], [str(tmp_path / "masks")]) == expected


def test_an_image_without_a_mask_is_named(tmp_path):
    write_masked(tmp_path / "data")
    (tmp_path / "data" / "masks" / "1.png").unlink()
    with pytest.raises(DataError, match=r"images/1\.png: no mask of that name in .*masks"):
        pair_masks([str(tmp_path / "data")], [])


def test_two_masks_for_one_image_are_refused(tmp_path):
    write_masked(tmp_path / "data")
    (tmp_path / "data" / "masks" / "1.bmp").write_bytes((tmp_path / "data" / "masks" / "1.png").read_bytes())
    with pytest.raises(DataError, match=r"1\.png: 1\.bmp has the same name; remove one of the two masks"):
        pair_masks([str(tmp_path / "data")], [])


def test_a_folder_without_the_two_parts_is_named(tmp_path):
    with pytest.raises(DataError, match=r"masks: no such folder"):
        pair_masks([str(tmp_path)], [])


@pytest.mark.parametrize(("void", "num_classes"), [(255, 3), (3, 3), (0, 3), (1, 2)])
def test_void_of_the_files_becomes_255(tmp_path, void, num_classes):
    ids = np.array([[0, 1, 2, void], [void, 0, 1, 1]], np.uint8).clip(0, None)
    ids[ids >= num_classes] = void
    pixels, found = read_pair(*write_one(tmp_path, ids), num_classes, void)
    assert (pixels.shape, pixels.dtype, found.dtype) == ((2, 4, 3), np.uint8, np.uint8)
    assert (found == np.where(ids == void, IGNORE, ids)).all()


def test_a_label_that_is_neither_class_nor_void_is_named_with_its_file(tmp_path):
    ids = np.array([[0, 1, 2, 3], [7, 7, 255, 1]], np.uint8)
    message = (
        r"a\.png: label 3 \(labels are wrong in 3 pixels\), but there are 3 classes \(0\.\.2\) and ignore_index is "
        r"255; set data\.ignore_index or fix the mask"
    )
    with pytest.raises(DataError, match=message):
        read_pair(*write_one(tmp_path, ids), 3, 255)


def test_labels_that_eight_bits_would_wrap_are_refused(tmp_path):
    image, _ = write_one(tmp_path, np.zeros((2, 2), np.uint8))
    write_mask(tmp_path / "deep.png", np.array([[0, 256], [1, 0]], np.uint16))
    with pytest.raises(DataError, match="label 256 "):
        read_pair(image, tmp_path / "deep.png", 3, 255)
    tifffile.imwrite(tmp_path / "signed.tif", np.array([[0, -255], [1, 0]], np.int32))
    with pytest.raises(DataError, match="label -255 "):
        read_pair(image, tmp_path / "signed.tif", 3, 255)


def test_sizes_that_differ_are_named(tmp_path):
    image, _ = write_one(tmp_path, np.zeros((4, 6), np.uint8))
    write_mask(tmp_path / "b.png", np.zeros((6, 4), np.uint8))
    with pytest.raises(DataError, match=r"b\.png is 4x6 but .*a\.png is 6x4: expected the same size"):
        read_pair(image, tmp_path / "b.png", 3, 255)


def test_items_are_tensors_of_whole_pictures_without_augmentation(tmp_path):
    picture, ids = make_masked(16, 24, 0)
    data = MaskedImages(pair_masks([str(write_masked(tmp_path / "d", 1, 16, 24))], []), 3, 255)
    image, found = data[5, 0]
    assert (image.dtype, found.dtype) == (torch.uint8, torch.uint8)
    assert (image.numpy() == picture.transpose(2, 0, 1)).all()
    assert (found.numpy() == ids).all()


def test_class_pixels_and_weights_by_hand(tmp_path):
    """Class 0: 6 of 16 pixels; class 1: 4 of the 8 of one picture; class 2: 2 of 8; class 3 is absent."""
    write_one(tmp_path, np.array([[0, 0, 0, 0], [2, 2, 255, 255]], np.uint8), "a")
    write_one(tmp_path, np.array([[0, 0, 1, 1], [1, 1, 255, 255]], np.uint8), "b")
    data = MaskedImages(pair_masks([str(tmp_path)], []), 4, 255)
    own, around = data.class_pixels(4)
    assert own.tolist() == [6, 4, 2, 0]
    assert around.tolist() == [16, 8, 8, 0]
    assert median_frequency_weights(own, around) == pytest.approx([1, 0.75, 1.5, 0])

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch

from densekit.datasets.checks import check_seg
from densekit.datasets.masks import MaskedImages, pair_masks, read_pair
from densekit.datasets.pictures import median_frequency_weights
from densekit.datasets.transforms import Augment
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


def test_a_folder_may_hold_its_parts_under_either_of_the_usual_names(tmp_path):
    write_masked(tmp_path / "data")
    expected = pair_masks([str(tmp_path / "data")], [])
    for part in ("image", "mask"):
        (tmp_path / "data" / f"{part}s").rename(tmp_path / "data" / part)
    found = pair_masks([str(tmp_path / "data")], [])
    assert [tuple(path.name for path in pair) for pair in found] == [("0.png",) * 2, ("1.png",) * 2, ("2.png",) * 2]
    assert [path.parent.name for path in found[0]] == ["image", "mask"]
    assert len(found) == len(expected)


def test_a_folder_without_the_two_parts_is_told_what_was_looked_for(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "mask").mkdir()
    message = (
        r": holds neither images/ and masks/ nor image/ and mask/; give the folder that does, or one of images and one "
        r"of masks"
    )
    with pytest.raises(DataError, match=message):
        pair_masks([str(tmp_path)], [])


def write_list(path, names):
    path.write_text("".join(f"{name}\n" for name in names))
    return str(path)


def test_lists_pair_by_the_names_of_the_files(tmp_path):
    """In any order, from any folders, a list against a list or a folder; masks that no image needs are left."""
    write_masked(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "masks" / "2.png").rename(tmp_path / "b" / "2.png")
    images = write_list(tmp_path / "train.txt", ["a/images/2.png", "a/images/0.png"])
    masks = write_list(tmp_path / "masks.txt", [f"a/masks/{i}.png" for i in range(2)] + ["b/2.png"])
    expected = [
        (tmp_path / "a/images/2.png", tmp_path / "b/2.png"),
        (tmp_path / "a/images/0.png", tmp_path / "a/masks/0.png"),
    ]
    assert pair_masks([images], [masks]) == expected
    one = write_list(tmp_path / "one.txt", ["a/images/1.png"])
    assert pair_masks([one], [str(tmp_path / "a" / "masks")]) == [
        (tmp_path / "a/images/1.png", tmp_path / "a/masks/1.png")
    ]
    twice = write_list(tmp_path / "twice.txt", ["a/images/1.png"] * 2)
    assert len(pair_masks([twice], [str(tmp_path / "a" / "masks")])) == 2


def test_lists_of_equal_names_in_several_folders_pair_by_their_folders(tmp_path):
    for city in ("bonn", "ulm"):
        write_masked(tmp_path / city, 2)
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / city / part).rename(tmp_path / part / city)
    names = [f"{city}/{i}.png" for city in ("ulm", "bonn") for i in range(2)]
    images = write_list(tmp_path / "train.txt", [f"images/{name}" for name in names])
    masks = write_list(tmp_path / "trainmasks.txt", [f"masks/{name}" for name in sorted(names)])
    assert pair_masks([images], [masks]) == [(tmp_path / "images" / name, tmp_path / "masks" / name) for name in names]


def test_a_list_without_masks_says_what_is_missing(tmp_path):
    write_masked(tmp_path / "a")
    images = write_list(tmp_path / "train.txt", ["a/images/2.png"])
    with pytest.raises(
        DataError, match=r"train\.txt: is a list of images; give one of their masks in data\.masks, too"
    ):
        pair_masks([images], [])


def test_the_check_takes_the_lists_and_layouts_that_training_takes(tmp_path):
    write_masked(tmp_path / "a", 4, 48, 64)
    names = [f"{i}.png" for i in range(4)]
    images = write_list(tmp_path / "train.txt", [f"a/images/{name}" for name in names[:3]])
    masks = write_list(tmp_path / "masks.txt", [f"a/masks/{name}" for name in names[:3]])
    result = check_seg([images], [masks], num_classes=3)
    assert not result.faults
    assert result.facts["train"]["masks"] == 3
    result = check_seg([tmp_path / "a"], num_classes=3, val_share=0.3)
    assert not result.faults
    assert (result.facts["train"]["masks"], result.facts["val"]["masks"]) == (2, 2)
    (tmp_path / "masks.txt").write_text("a/masks/0.png\na/masks/9.png\n")
    (fault,) = check_seg([images], [masks], num_classes=3).errors
    assert str(fault).endswith(
        "masks.txt: 1 of 2 paths cannot be used: line 2: 'a/masks/9.png' is no file; mend the list"
    )
    (fault,) = check_seg([tmp_path / "none"]).errors
    assert str(fault).endswith(
        "none: holds neither images/ and masks/ nor image/ and mask/; give the folder that does, or one of images and "
        "one of masks"
    )


def test_a_cache_gives_the_very_items_that_decoding_gives(tmp_path):
    write_masked(tmp_path / "d", 3, 40, 48)
    pairs, augment = pair_masks([str(tmp_path / "d")], []), Augment("strong", 24, 3)
    plain = MaskedImages(pairs, 3, 255, augment)
    for cached in (MaskedImages(pairs, 3, 255, augment, cache=str(tmp_path / "cache")) for _ in range(2)):
        for index, (one, other) in enumerate(zip(plain.samples, cached.samples, strict=True)):
            assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(one, other, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(plain[7, index], cached[7, index], strict=True))
        assert cached.class_pixels(3)[0].tolist() == plain.class_pixels(3)[0].tolist()
    whole = MaskedImages(pairs, 3, 255, cache=str(tmp_path / "cache"))[0, 1]
    assert all(torch.equal(a, b) for a, b in zip(MaskedImages(pairs, 3, 255)[0, 1], whole, strict=True))
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1


def test_other_numbers_of_classes_and_void_have_packs_of_their_own(tmp_path):
    write_one(tmp_path, np.array([[0, 1, 2, 2]], np.uint8))
    pairs, cache = pair_masks([str(tmp_path)], []), str(tmp_path / "cache")
    assert MaskedImages(pairs, 3, 255, cache=cache).samples[0][1].tolist() == [[0, 1, 2, 2]]
    assert MaskedImages(pairs, 2, 2, cache=cache).samples[0][1].tolist() == [[0, 1, 255, 255]]
    with pytest.raises(DataError, match="label 2 "):
        MaskedImages(pairs, 2, 255, cache=cache)


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

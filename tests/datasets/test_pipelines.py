"""Pipelines of albumentations from a config: what they make, and what is said of those that cannot be."""

from __future__ import annotations

import inspect
import multiprocessing
import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from densekit.config import parse_config
from densekit.datasets import pipelines
from densekit.datasets.draws import Draws, draw_rng
from densekit.datasets.masks import MaskedImages, pair_masks
from densekit.datasets.pipelines import A, listed_steps
from densekit.datasets.transforms import Augment
from densekit.errors import ConfigError
from densekit.losses import IGNORE
from densekit.tasks.common import batches
from tests.training_data import make_masked, seg_config, write_masked

CROP = 40
IS_LABEL = np.isin(np.arange(256), (1, 4, 9, IGNORE))

# Arguments that a transform needs, or without which it changes nothing.
ARGUMENTS = {
    "Affine": {"rotate": [-40, 40]},
    "AtLeastOneBBoxRandomCrop": {"height": CROP, "width": CROP},
    "CenterCrop": {"height": CROP, "width": CROP},
    "Crop": {"x_max": CROP, "y_max": CROP},
    "CropAndPad": {"percent": 0.2},
    "CropNonEmptyMaskIfExists": {"height": CROP, "width": CROP},
    "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 5},
    "LongestMaxSize": {"max_size": 60},
    "Pad": {"padding": 9},
    "PadIfNeeded": {"min_height": 100, "min_width": 100},
    "RandomCrop": {"height": CROP, "width": CROP},
    "RandomResizedCrop": {"size": [CROP, CROP]},
    "RandomSizedCrop": {"min_max_height": [CROP, 50], "size": [CROP, CROP]},
    "Resize": {"height": CROP, "width": CROP},
    "SmallestMaxSize": {"max_size": 60},
    "XYMasking": {"num_masks_x": 2, "mask_x_length": 10},
}
UNFIT = {  # they need more than an image and its mask, or make something else of them
    "BBoxSafeRandomCrop", "CenterCrop3D", "CoarseDropout3D", "CubicSymmetry", "FDA", "FromFloat", "HistogramMatching",
    "Mosaic", "Normalize", "OverlayElements", "Pad3D", "PadIfNeeded3D", "PixelDistributionAdaptation", "RandomCrop3D",
    "RandomCropNearBBox", "RandomSizedBBoxSafeCrop", "TextImage", "ToFloat", "ToTensor3D", "ToTensorV2", "ToRGB",
    "ConstrainedCoarseDropout",
}  # fmt: skip
TRANSFORMS = sorted(
    name
    for name, kind in vars(A).items()
    if inspect.isclass(kind) and issubclass(kind, A.BasicTransform) and name not in pipelines._NO_STEPS
)
SPATIAL = [name for name in TRANSFORMS if issubclass(getattr(A, name), A.DualTransform) and name not in UNFIT]


def marked():
    """A picture whose brightness tells the label: 50, 111 and 212 for 1, 4 and 9, in blocks of 24 pixels."""
    ids = np.array([1, 4, 9], np.uint8)[make_masked(24, 28, 0)[1]].repeat(3, 0).repeat(3, 1)
    return np.repeat(30 + 20 * ids[..., None] + ids[..., None] // 4, 3, axis=2).astype(np.uint8), ids


def marked_slow(names):
    """The names, some of which take seconds where others take milliseconds."""
    slow = ("PiecewiseAffine", "Superpixels")
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def draws_of(steps, count, crop=CROP, **options):
    augment = Augment(steps, crop, seed=3, **options)
    picture, ids = marked()
    return [augment(picture, ids, draw) for draw in range(count)]


@pytest.mark.parametrize("name", marked_slow([name for name in TRANSFORMS if name not in UNFIT]))
def test_every_transform_that_takes_images_with_masks_can_be_named(name):
    """In memory that must not be written to, as a function of seed and draw alone, labels being labels."""
    steps = [{name: {"p": 1.0, **ARGUMENTS.get(name, {})}}]
    picture, ids = marked()
    picture.flags.writeable = ids.flags.writeable = False
    one, other = Augment(steps, CROP, seed=3), Augment(steps, CROP, seed=3)
    one.check(picture, ids, IS_LABEL)
    states = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    forwards = [one(picture, ids, draw) for draw in range(3)]
    backwards = [other(picture, ids, draw) for draw in reversed(range(3))][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        assert (first["image"].shape, first["mask"].shape) == ((CROP, CROP, 3), (CROP, CROP))
        assert first["image"].dtype == first["mask"].dtype == np.uint8
        assert IS_LABEL[first["mask"]].all()
        assert all((first[key] == second[key]).all() for key in ("image", "mask"))
    assert (states[0] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[1] == random.getstate()
    assert torch.equal(states[2], torch.get_rng_state())


@pytest.mark.parametrize("name", marked_slow([n for n in SPATIAL if n not in ("MaskDropout", "Morphological")]))
def test_every_spatial_transform_moves_image_and_mask_alike(name):
    """Each pixel still has the brightness of its label, but where borders were mixed, or the image alone was erased."""
    labels, right, kept = np.array([1, 4, 9]), [], []
    for varied in draws_of([{name: {"p": 1.0, **ARGUMENTS.get(name, {})}}], 8):
        pixels, mask = varied["image"][..., 0].astype(int), varied["mask"]
        nearest = labels[np.abs(pixels[..., None] - (30 + 20 * labels + labels // 4)).argmin(-1)]
        right.append(nearest == mask)
        kept.append((mask != IGNORE) & (pixels > 0))
    assert np.mean(kept) > 0.2
    assert np.mean(np.array(right)[np.array(kept)]) > 0.9


PADDING = [name for name in SPATIAL if (inspect.signature(getattr(A, name)).parameters.get("fill_mask"))]
PADDED = {  # arguments with which they pad or erase
    "Affine": {"translate_px": 30},
    "CenterCrop": {"height": 200, "width": 200, "pad_if_needed": True},
    "Crop": {"x_max": 200, "y_max": 200, "pad_if_needed": True},
    "CropAndPad": {"percent": 0.2, "keep_size": False},
    "ElasticTransform": {"alpha": 300, "sigma": 5},
    "Perspective": {"scale": [0.2, 0.3], "fit_output": True},
    "OpticalDistortion": {"distort_limit": [0.9, 0.9]},
    "RandomCrop": {"height": 200, "width": 200, "pad_if_needed": True},
    "Rotate": {"limit": [45, 45]},
    "SafeRotate": {"limit": [45, 45]},
    "ShiftScaleRotate": {"rotate_limit": [45, 45]},
}


@pytest.mark.parametrize("name", marked_slow([*PADDING, "TimeMasking", "FrequencyMasking"]))
def test_what_a_transform_fills_in_a_mask_is_void_or_left_alone_never_the_first_class(name):
    """Those whose fill_mask is null by themselves erase the image alone; all others are told to fill with void."""
    arguments = {"p": 1.0, **ARGUMENTS.get(name, {}), **PADDED.get(name, {})}
    picture, ids = marked()
    (step,) = listed_steps([{name: arguments}])
    found = set()
    for draw in range(12):
        step.set_random_state(draw_rng(0, draw), random.Random(draw))
        found |= set(np.unique(step(image=picture, mask=ids)["mask"]))
    kind = inspect.signature(getattr(A, name)).parameters.get("fill_mask")
    if kind is not None and kind.default is None:
        assert found == {1, 4, 9}
    elif name not in ("GridDistortion", "PiecewiseAffine"):  # which seldom leave the picture
        assert found == {1, 4, 9, IGNORE}
    assert found <= {1, 4, 9, IGNORE}
    if kind is not None:
        (told,) = listed_steps([{name: {**arguments, "fill_mask": 4}}])
        assert told.fill_mask == 4


def test_steps_are_those_of_albumentations_in_their_order_with_the_crop_behind():
    listed = ["HorizontalFlip", {"RandomScale": {"scale_limit": [-0.5, 0.5], "p": 1.0}}, {"GaussNoise": None}]
    picture, ids = marked()
    ours = Augment(listed, CROP, seed=3)
    theirs = A.Compose(
        [
            A.HorizontalFlip(),
            A.RandomScale((-0.5, 0.5), p=1.0),
            A.GaussNoise(),
            A.PadIfNeeded(CROP, CROP, fill_mask=255),
            A.RandomCrop(CROP, CROP),
        ]
    )
    for draw in range(10):
        theirs.set_random_state(draw_rng(3, draw), random.Random((3 << 40) | draw))
        expected, found = theirs(image=picture, mask=ids), ours(picture, ids, draw)
        assert all((found[key] == expected[key]).all() for key in ("image", "mask"))


def test_a_pipeline_that_ends_with_the_size_of_the_crop_is_not_cropped_again():
    listed = [{"RandomResizedCrop": {"size": [CROP, CROP], "scale": [0.2, 0.4]}}]
    picture, ids = marked()
    alone = A.Compose([A.RandomResizedCrop((CROP, CROP), scale=(0.2, 0.4))])
    for draw in range(5):
        alone.set_random_state(draw_rng(3, draw), random.Random((3 << 40) | draw))
        expected = alone(image=picture, mask=ids)
        assert (Augment(listed, CROP, seed=3)(picture, ids, draw)["mask"] == expected["mask"]).all()


def test_compositions_hold_lists_of_their_own():
    text = """\
task: seg
model: {name: fc_densenet, num_classes: 3}
data:
  train: x
  augment:
  - OneOf:
      p: 0.7
      transforms:
      - HorizontalFlip:
      - VerticalFlip: {p: 1}
      - Sequential:
          transforms: [Transpose, {Affine: {rotate: [-90, 90], border_mode: cv2.BORDER_REFLECT_101}}]
  - SomeOf: {n: 2, transforms: [ToGray, ToSepia, {CoarseDropout: {fill_mask: null}}]}
train: {total_steps: 1, crop_size: 32}
"""
    one, some = listed_steps(parse_config(text).data.augment)
    assert [type(part).__name__ for part in one.transforms] == ["HorizontalFlip", "VerticalFlip", "Sequential"]
    affine = one.transforms[2].transforms[1]
    assert (one.p, one.transforms[1].p, affine.rotate, affine.border_mode, affine.fill_mask) == (
        0.7, 1, (-90, 90), 4, IGNORE,
    )  # fmt: skip
    assert (some.n, len(some.transforms), some.transforms[2].fill_mask) == (2, 3, None)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (
            ["HorizontalFlop"],
            "data.augment[0] HorizontalFlop: albumentations 2.0.8 has no such transform; did you mean "
            "'HorizontalFlip'?",
        ),
        (["Flip"], "data.augment[0] Flip: albumentations 2.0.8 has no such transform"),
        (["numpy"], "data.augment[0] numpy: albumentations 2.0.8 has no such transform"),
        (
            ["DualTransform"],
            "data.augment[0] DualTransform: albumentations 2.0.8 has no such transform for a config: it is "
            "what transforms are made from",
        ),
        (
            [{"Compose": {"transforms": ["D4"]}}],
            "data.augment[0] Compose: albumentations 2.0.8 has no such transform for a config: use Sequential",
        ),
        (["D4", {"HorizontalFlip": {"prob": 0.5}}], "data.augment[1] HorizontalFlip: has no argument 'prob'"),
        (
            [{"RandomScale": {"scale_limits": 1}}],
            "data.augment[0] RandomScale: has no argument 'scale_limits'; did you mean 'scale_limit'?",
        ),
        ([{"D4": {"self": 1}}], "data.augment[0] D4: has no argument 'self'"),
        ([{"D4": {"strict": True}}], "data.augment[0] D4: has no argument 'strict'"),
        ([{"D4": 0.5}], "data.augment[0] D4: its arguments must be names with values, such as {p: 0.5}"),
        ([{"D4": {"p": 2}}], "data.augment[0] D4: p=2: must be a number from 0 to 1"),
        (
            [{"OneOf": {"p": "often", "transforms": ["D4"]}}],
            "data.augment[0] OneOf: p='often': must be a number from 0 to 1",
        ),
        ([{"RandomCrop": {"height": 5}}], "data.augment[0] RandomCrop: needs width"),
        (["RandomCrop"], "data.augment[0] RandomCrop: needs height and width"),
        (["OneOf"], "data.augment[0] OneOf: needs transforms"),
        ([{"OneOf": {"transforms": []}}], "data.augment[0] OneOf: transforms must be a list of one or more"),
        ([{"OneOf": {"transforms": {"D4": {}}}}], "data.augment[0] OneOf: transforms must be a list of one or more"),
        (
            [{"OneOf": {"transforms": ["D4", {"Rotate": {}, "D4": {}}]}}],
            "data.augment[0] OneOf.transforms[1]: must be one name "
            "with its arguments, such as HorizontalFlip: {p: 0.5}",
        ),
        (
            [{"OneOf": {"transforms": ["D4", "Rotatee"]}}],
            "data.augment[0] OneOf.transforms[1] Rotatee: albumentations 2.0.8 has no such transform; "
            "did you mean 'Rotate'?",
        ),
        (
            [{"RandomScale": {"scale_limit": "wide"}}],
            "data.augment[0] RandomScale: scale_limit='wide': Input should be a valid "
            "tuple; or Input should be a valid number, unable to parse string as a number",
        ),
        (
            [{"ColorJitter": {"brightness": -1}}],
            "data.augment[0] ColorJitter: brightness=-1: If brightness is a single number, it must be non negative.",
        ),
        ([{"CropAndPad": {"px": 1, "percent": 0.2}}], "data.augment[0] CropAndPad: Only px or percent may be set!"),
        (
            [{"Blur": {"blur_limit": [2, 6]}}],
            "data.augment[0] Blur: blur_limit: Invalid kernel size range (2, 6).",
        ),
        (
            [{"SomeOf": {"n": 3, "transforms": ["D4"]}}],
            "data.augment[0] SomeOf: `n` is greater than number of transforms",
        ),
        (
            [{"Rotate": {"mask_interpolation": 1}}],
            "data.augment[0] Rotate: mask_interpolation must be nearest, or labels would be mixed; remove it",
        ),
        (
            [{"Rotate": {"border_mode": "cv2.BORDER_ROUND"}}],
            "data.augment[0] Rotate: border_mode='cv2.BORDER_ROUND': Input should be",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line_that_names_the_key(listed, message):
    with pytest.raises(ConfigError) as error:
        Augment(listed, CROP, 0)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (
            ["D4", {"Normalize": {"p": 0.01}}],
            "data.augment[1] Normalize: makes images float32 (H, W, 3), but training takes "
            "uint8 (H, W, 3) and scales it itself; remove it",
        ),
        (["ToTensorV2"], "data.augment[0] ToTensorV2: makes images of type Tensor, but training takes uint8"),
        ([{"ToGray": {"num_output_channels": 1}}], "data.augment[0] ToGray: makes images uint8 (H, W), but"),
        (["FDA"], "data.augment[0] FDA: FDA requires ['fda_metadata'] missing keys: {'fda_metadata'} (tried on 84x72"),
        (
            [{"SomeOf": {"transforms": ["D4", "BBoxSafeRandomCrop"]}}],
            "data.augment[0] SomeOf.transforms[1] BBoxSafeRandomCrop: 'bboxes' (tried on 84x72 pixels)",
        ),
        (
            [{"Rotate": {"limit": [45, 45], "fill_mask": 7}}],
            "data.augment[0] Rotate: makes label 7, which is no class; a mask may be filled with 255 alone",
        ),
        ([{"PixelDropout": {"mask_drop_value": 3}}], "data.augment[0] PixelDropout: makes label 3, which is no class"),
        (
            [{"RandomCrop": {"height": 100, "width": 100}}],
            "data.augment[0] RandomCrop: Crop size (height, width) exceeds image "
            "dimensions (height, width): (100, 100) vs (72, 84) (tried on 84x72 pixels)",
        ),
        (
            [
                {
                    "Sequential": {
                        "transforms": [
                            {"Resize": {"height": 20, "width": 30}},
                            {"CenterCrop": {"height": 25, "width": 25}},
                        ]
                    }
                }
            ],
            "data.augment[0] Sequential.transforms[1] CenterCrop: Crop size (height, width) exceeds",
        ),
    ],
)
def test_what_training_cannot_take_is_found_on_the_first_pictures(listed, message):
    """However seldom a transform is applied: each is tried."""
    with pytest.raises(ConfigError) as error:
        Augment(listed, CROP, 0).check(*marked(), IS_LABEL)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_smallest_picture_decides_whether_a_pipeline_can_be(tmp_path):
    write_masked(tmp_path / "data", 2, 64, 64)
    write_masked(tmp_path / "small", 1, 64, 20)
    listed = [{"RandomCrop": {"height": 32, "width": 32}}]
    assert len(MaskedImages(pair_masks([str(tmp_path / "data")], []), 3, 255, Augment(listed, 32, 0)))
    pairs = pair_masks([str(tmp_path / "data"), str(tmp_path / "small")], [])
    with pytest.raises(ConfigError, match=r"data\.augment\[0\] RandomCrop: .* \(tried on 20x64 pixels\)"):
        MaskedImages(pairs, 3, 255, Augment(listed, 32, 0))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_fails_in_a_draw_is_one_line_from_loader_processes_too(tmp_path, workers):
    """A picture replaced behind the check's back stands for one whose size fits only some draws."""
    config = seg_config(write_masked(tmp_path / "data"), data={"num_workers": workers})
    data = MaskedImages(
        pair_masks([str(tmp_path / "data")], []), 3, 255, Augment([{"RandomCrop": {"height": 32, "width": 32}}], 32, 0)
    )
    data.samples = [(image[:20], ids[:20]) for image, ids in data.samples]
    with pytest.raises(ConfigError) as error:
        next(batches(data, config, 0))
    assert str(error.value) == (
        "data.augment: Crop size (height, width) exceeds image dimensions (height, width): (32, 32) vs (20, 48) "
        "(a picture of 48x20, draw 0)"
    )
    assert not multiprocessing.active_children()  # they would keep the process from ending


def test_labels_that_appear_in_a_draw_alone_are_refused(tmp_path):
    data = MaskedImages(pair_masks([str(write_masked(tmp_path / "data"))], []), 3, 255, Augment("light", 32, 0))
    data.samples = [(image, ids + 3) for image, ids in data.samples]
    with pytest.raises(
        ConfigError, match=r"data\.augment: makes label [345], which is no class, of .*\.png \(draw 4\)"
    ):
        data[4, 0]


class Fingerprints(MaskedImages):
    """Masked images whose items are a hash of what would be drawn."""

    def __getitem__(self, item):
        image, ids = super().__getitem__(item)
        return hash((image.numpy().tobytes(), ids.numpy().tobytes()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_draws_of_a_listed_pipeline_differ_and_are_the_same_with_any_number_of_workers(tmp_path):
    """F17 for pipelines of the config: no draw repeats another, over 2 workers and 75 epochs."""
    listed = [
        {"OneOf": {"transforms": ["HorizontalFlip", {"Rotate": {"limit": 20}}], "p": 0.8}},
        {"SomeOf": {"n": 2, "transforms": ["RandomBrightnessContrast", "GaussNoise", "CoarseDropout"]}},
    ]
    pairs = pair_masks([str(write_masked(tmp_path / "data", count=4, height=112, width=128))], [])
    data = Fingerprints(pairs, 3, 255, Augment(listed, 32, seed=7))

    def draw(workers, count=300):
        loader = DataLoader(data, 20, sampler=Draws(len(data), seed=7), num_workers=workers)
        return torch.cat(list(islice(loader, count // 20))).tolist()

    stream = draw(2)
    assert len(set(stream)) == 300
    assert draw(0, 100) == stream[:100]

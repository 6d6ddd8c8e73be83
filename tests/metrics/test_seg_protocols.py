"""Protocols, and the splits that figures may and may not be measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from densekit.config import EvalConfig
from densekit.errors import ConfigError, DataError
from densekit.metrics import (
    SEG_PROTOCOLS,
    ConfusionMatrix,
    check_camvid_split,
    find_split,
    seg_protocol,
    split_hash,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")

# Frames that SegNet's split consists of; that of train differs from a rule in one name, 0016E5_00901 for _00900.
TRAIN = [
    *(f"0001TP_{frame:06}" for frame in range(6690, 8521, 30)),
    *(f"0006R0_f{frame:05}" for frame in range(930, 3931, 30)),
    *(f"0016E5_{frame + (frame == 900):05}" for frame in range(390, 8641, 30) if not (2400 < frame < 4350)),
]
TRAIN = [name for name in TRAIN if name not in {f"0016E5_{frame:05}" for frame in range(7950, 8161, 30)}]
VAL = [f"0016E5_{frame:05}" for frame in range(7959, 8160, 2)]
TEST = [
    *(f"0001TP_{frame:06}" for frame in range(8550, 10381, 30)),
    *(f"Seq05VD_f{frame:05}" for frame in range(0, 5101, 30)),
]


def test_the_names_of_the_table_are_those_of_its_entries_and_all_say_what_they_do():
    assert list(SEG_PROTOCOLS) == ["camvid11-360x480", "voc21", "cityscapes19", "binary", "dataset-iou"]
    for name, protocol in SEG_PROTOCOLS.items():
        assert protocol.name == name
        assert "IoU" in protocol.description
        assert len(protocol.description) < 120
        assert protocol.ignore_index is None or protocol.ignore_index >= len(protocol.classes)


def test_each_protocol_has_its_classes_in_order():
    camvid, voc, cityscapes = (SEG_PROTOCOLS[name].classes for name in ("camvid11-360x480", "voc21", "cityscapes19"))
    assert (len(camvid), len(voc), len(cityscapes)) == (11, 21, 19)
    assert (camvid[0], camvid[3], camvid[10]) == ("Sky", "Road", "Bicyclist")
    assert voc[1:] == tuple(sorted(voc[1:]))  # the background, then the alphabet
    assert (voc[0], voc[15]) == ("background", "person")
    assert (cityscapes[0], cityscapes[10], cityscapes[13], cityscapes[18]) == ("road", "sky", "car", "bicycle")


def test_cityscapes_ids_become_class_numbers():
    ids = SEG_PROTOCOLS["cityscapes19"].train_ids
    assert ids == {
        7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
        28: 15, 31: 16, 32: 17, 33: 18,
    }  # fmt: skip


def test_a_protocols_figure_is_its_headline():
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]))
    assert seg_protocol("binary").figure(matrix) == 1 / 2
    assert seg_protocol("dataset-iou").figure(matrix) == (1 / 2 + 2 / 3) / 2


def test_the_config_knows_no_segmentation_protocol_that_the_table_lacks():
    known = {
        name for name in EvalConfig.model_json_schema()["properties"]["protocol"]["anyOf"][0]["enum"] if "iou" in name
    }
    assert known <= SEG_PROTOCOLS.keys()


def test_what_does_not_go_with_a_protocol_is_refused():
    with pytest.raises(ConfigError, match=r"protocol 'camvid11' is unknown; expected one of camvid11-360x480, voc21, "):
        seg_protocol("camvid11")
    with pytest.raises(ConfigError, match=r"; did you mean 'cityscapes19'\?$"):
        seg_protocol("cityscapes")
    with pytest.raises(ConfigError, match=r"protocol voc21 has 21 classes, found 20; choose another protocol$"):
        seg_protocol("voc21").check_classes(20)
    with pytest.raises(
        DataError,
        match=r"^a\\nb.png: 960x720, but protocol camvid11-360x480 needs 480x360; use the edition of that size, or",
    ):
        seg_protocol("camvid11-360x480").check_size(720, 960, "a\nb.png")
    seg_protocol("camvid11-360x480").check_size(360, 480, "a.png")
    for name in ("dataset-iou", "binary"):
        seg_protocol(name).check_size(1, 1, "a.png")
    seg_protocol("dataset-iou").check_classes(7)


def test_a_split_is_named_by_its_stems_whatever_their_order_folder_and_format():
    expected = hashlib.sha256(b"0016E5_07959\n0016E5_07961").hexdigest()
    assert split_hash(["0016E5_07959", "0016E5_07961"]) == expected
    assert split_hash(["b/val/0016E5_07961.webp", PurePosixPath("0016E5_07959.png")]) == expected
    assert split_hash(["0016E5_07959"]) != expected
    assert split_hash(["\udcff.png"])  # a name that is no UTF-8


def test_the_splits_of_camvid_are_known_by_their_names():
    assert (len(TRAIN), len(VAL), len(TEST)) == (367, 101, 233)
    for split, names in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        assert find_split(f"{name}.png" for name in reversed(names)) == ("camvid11-360x480", split)
    assert find_split(VAL[1:]) is None


@needs_shared_data
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", ["", "annot"])
def test_the_files_of_camvid_are_the_known_splits(split, kind):
    assert find_split((SHARED / "camvid" / f"{split}{kind}").iterdir()) == ("camvid11-360x480", split)


def test_segnets_split_passes():
    check_camvid_split(TRAIN, VAL)
    check_camvid_split(TRAIN, TEST)
    check_camvid_split([*TRAIN, *VAL], TEST)
    check_camvid_split(["1.png", "2.png"], ["1.png", "2.png"])  # not CamVid's: equal names in two folders say nothing
    check_camvid_split([], [])


def test_a_frame_in_both_parts_is_refused():
    with pytest.raises(
        DataError,
        match=r"^2 of 103 CamVid frames to be scored are training frames \(first: 0001TP_006690\); expected disjoint "
        r"splits: use SegNet's, see data/camvid/README.md$",
    ):
        check_camvid_split(TRAIN, [*VAL, *TRAIN[:2]])
    with pytest.raises(DataError, match="1 of 1 CamVid frames to be scored are training frames"):
        check_camvid_split(["train/0001TP_006690.png"], ["val_labels/0001TP_006690_L.png"])


def test_training_on_val_and_scoring_it_is_refused():
    with pytest.raises(DataError, match=r"^101 of 101 CamVid frames to be scored are training frames"):
        check_camvid_split([*TRAIN, *VAL], VAL)


@pytest.mark.parametrize("seed", range(5))
def test_a_split_at_random_is_refused(seed):
    """369, 100 and 232 frames are what the edition on Kaggle deals out; its lists are not known here."""
    names = np.random.default_rng(seed).permutation([*TRAIN, *VAL, *TEST])
    with pytest.raises(
        DataError, match=r"within a second of a training frame \(first: .*\): a leaky split, as Kaggle's"
    ):
        check_camvid_split(names[:369], names[369:469])
    with pytest.raises(DataError, match="a leaky split"):
        check_camvid_split(names[:369], names[469:])


def test_a_split_by_short_runs_of_frames_is_refused():
    """Runs of 2 and 4 frames, as in the folders of GeorgeSeif/Semantic-Segmentation-Suite."""
    val = [name for place, name in enumerate(TRAIN) if place % 20 in (6, 7, 8, 9, 18, 19)]
    with pytest.raises(DataError, match="a leaky split"):
        check_camvid_split([name for name in TRAIN if name not in val], val)

"""Pictures that belong together: partners by name, and paired folders of super-resolution."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densekit.datasets.pairs import Pairs, make_pair
from densekit.datasets.partners import Partners, pair_pictures, plain_name
from densekit.errors import DataError
from densekit.image import Picture, write_image
from tests.training_data import make_picture

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def write(folder, sizes):
    """Writes pictures {name: (height, width)} into a folder."""
    for seed, (name, size) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, Picture(make_picture(*size, seed)))
    return folder


@pytest.mark.parametrize(
    ("stem", "plain", "factor"),
    [
        ("baby", "baby", None),
        ("baby_x2", "baby", 2),
        ("img_001x4", "img_001", 4),
        ("0801x4", "0801", 4),
        ("0801x2m", "0801", 2),
        ("baby_LRBI_x2", "baby", 2),
        ("baby_HR_x2", "baby", 2),
        ("baby_HR", "baby", None),
        ("img_001_SRF_4_LR", "img_001", 4),
        ("img_001_SRF_4_HR", "img_001", 4),
        ("x2", "x2", None),
        ("_x2", "_", 2),
        ("img_001", "img_001", None),
        ("2x4_wood", "2x4_wood", None),
    ],
)
def test_what_tools_put_behind_a_name_is_not_part_of_it(stem, plain, factor):
    assert plain_name(Path(f"{stem}.png")) == (plain, factor)


@given(st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=30))
def test_every_name_has_a_plain_one_that_begins_it(stem):
    path = Path(f"a{stem}.png")
    plain, factor = plain_name(path)
    assert plain
    assert path.stem.lower().startswith(plain)
    assert factor is None or 0 <= factor <= 9


def test_partners_are_found_by_equal_names_first_then_by_plain_ones(tmp_path):
    highs = write(tmp_path / "hr", {"a.png": (4, 4), "b_x2.png": (4, 4), "sub/c.png": (4, 4)})
    lows = write(tmp_path / "lr", {"a_x2.png": (2, 2), "a_x4.png": (1, 1), "b_x2.png": (2, 2), "B.jpg": (2, 2)})
    write(lows, {"sub/c_LR.png": (2, 2)})
    partners = Partners(lows, scale=2)
    found = [partners.find(highs / name, highs) for name in ("a.png", "b_x2.png", "sub/c.png")]
    assert found == [lows / "a_x2.png", lows / "b_x2.png", lows / "sub/c_LR.png"]
    with pytest.raises(DataError, match=r"both a_x2\.png and a_x4\.png in .*lr could belong to it; remove one"):
        Partners(lows).find(highs / "a.png", highs)
    with pytest.raises(DataError, match=r"no picture of that name in .*lr; add one, or remove this"):
        partners.find(highs / "d.png", highs)
    with pytest.raises(DataError, match="no such folder"):
        Partners(tmp_path / "gone")


def test_masks_may_end_in_what_predict_puts_behind_a_name(tmp_path):
    masks = write(tmp_path / "m", {"photo_mask.png": (2, 2), "x2.png": (2, 2)})
    partners = Partners(masks, masks=True)
    assert partners.find(Path("p/photo.jpg"), Path("p")) == masks / "photo_mask.png"
    assert partners.find(Path("p/x2.jpg"), Path("p")) == masks / "x2.png"


def test_low_resolution_is_read_where_there_is_some(tmp_path):
    """Not what would have been made: here it is noise. 41 rows are cut to 40, as the benchmarks do."""
    high, low = tmp_path / "hr", tmp_path / "lr"
    write(high, {"0001.png": (41, 48), "sub/0002.png": (40, 49)})
    noise = [np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8) for seed in range(2)]
    for name, pixels in zip(("0001x2.png", "sub/0002x2.png"), noise, strict=True):
        (low / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(low / name, Picture(pixels))
    sources = pair_pictures([high], [low], scale=2)
    assert sources == [(high / "0001.png", low / "0001x2.png"), (high / "sub/0002.png", low / "sub/0002x2.png")]
    data = Pairs(sources, 2, 8, 0)
    assert all((pair[0] == pixels).all() for pair, pixels in zip(data.pairs, noise, strict=True))
    assert [hr.shape for _, hr in data.pairs] == 2 * [(40, 48, 3)]
    assert data.paths == data.origins == [high / "0001.png", high / "sub/0002.png"]


def test_lists_pair_with_folders_and_lists_by_the_names_below_what_holds_them_all(tmp_path):
    write(tmp_path, {"HR/a.png": (16, 16), "HR/b.png": (16, 16), "LR/a.png": (8, 8), "LR/b.png": (8, 8)})
    (tmp_path / "hr.txt").write_text("HR/b.png\n")
    (tmp_path / "lr.txt").write_text("LR/a.png\nLR/b.png\n")
    expected = [(tmp_path / "HR/b.png", tmp_path / "LR/b.png")]
    assert pair_pictures([tmp_path / "hr.txt"], [tmp_path / "lr.txt"], scale=2) == expected
    assert pair_pictures([tmp_path / "hr.txt"], [tmp_path / "LR"], scale=2) == expected


def test_all_pairs_that_do_not_fit_are_told_in_one_line(tmp_path):
    high = write(tmp_path / "hr", {f"{name}.png": (40, 48) for name in "abcdefgh"} | {"a.jpg": (40, 48)})
    low = write(tmp_path / "lr", {f"{name}.png": (19, 24) for name in "cdefgh"} | {"a.png": (20, 24)})
    with pytest.raises(DataError) as error:
        pair_pictures([high], [low], scale=2)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(
        f"8 low-resolution pictures do not fit: {high}/a.png: {low}/a.png also belongs to {high}/a.jpg; "
        f"{high}/b.png: no picture of that name in {low}; add one, or remove this; "
        f"{low}/c.png is 24x19 but {high}/c.png is 48x40: expected 24x20 at scale 2; "
    )
    assert message.endswith("; and 3 more")


def test_another_scale_in_the_name_is_no_partner(tmp_path):
    high, low = write(tmp_path / "hr", {"a.png": (40, 48)}), write(tmp_path / "lr", {"ax4.png": (10, 12)})
    assert pair_pictures([high], [low], scale=4)
    with pytest.raises(DataError, match=r"1 low-resolution pictures do not fit: .*a\.png: no picture of that name in"):
        pair_pictures([high], [low], scale=2)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_are_those_of_upright_pictures_whatever_their_headers_say(tmp_path, orientation):
    picture = make_picture(40, 56, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, pixels in (("hr/a.jpg", picture), ("lr/a.jpg", make_pair(picture, 2)[0])):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    source = (tmp_path / "hr/a.jpg", tmp_path / "lr/a.jpg")
    assert pair_pictures([tmp_path / "hr"], [tmp_path / "lr"], scale=2) == [source]
    assert Pairs([source], 2, 8, 0).pairs[0][1].shape[:2] == ((40, 56) if orientation < 5 else (56, 40))


def test_a_png_that_says_behind_its_pixels_that_it_is_turned_has_its_true_size(tmp_path):
    write(tmp_path / "hr", {"a.png": (48, 40)})
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.fromarray(make_picture(20, 24, 0)).save(stored, "PNG", exif=exif)
    parts = chunks(stored.getvalue())
    parts.insert(-1, parts.pop([kind for kind, _ in parts].index(b"eXIf")))
    (tmp_path / "lr").mkdir()
    (tmp_path / "lr/a.png").write_bytes(stored.getvalue()[:8] + b"".join(whole for _, whole in parts))
    (source,) = pair_pictures([tmp_path / "hr"], [tmp_path / "lr"], scale=2)
    assert Pairs([source], 2, 8, 0).pairs[0][0].shape == (24, 20, 3)


def chunks(png):
    """The chunks of a PNG as (kind, bytes)."""
    found, place = [], 8
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        found.append((png[place + 4 : place + 8], png[place:end]))
        place = end
    return found


def test_sizes_that_no_header_tells_are_read(tmp_path):
    for name, size in (("hr/a.tif", (16, 16)), ("lr/a.tif", (8, 7))):
        (tmp_path / name).parent.mkdir()
        write_image(tmp_path / name, Picture(np.random.default_rng(0).random((*size, 3), np.float32)))
    with pytest.raises(DataError, match=r"a\.tif is 7x8 but .*a\.tif is 16x16: expected 8x8 at scale 2"):
        pair_pictures([tmp_path / "hr"], [tmp_path / "lr"], scale=2)


def test_a_pair_whose_sizes_change_after_they_were_looked_at_is_refused_too(tmp_path):
    write(tmp_path, {"hr.png": (40, 48), "lr.png": (20, 20)})
    with pytest.raises(DataError, match=r"lr\.png is 20x20 but .*hr\.png is 48x40: expected 24x20 at scale 2"):
        Pairs([(tmp_path / "hr.png", tmp_path / "lr.png")], 2, 8, 0)


@pytest.mark.skipif(not (SHARED / "set14").is_dir(), reason="needs ../shared/data/set14")
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["set5", "set14"])
def test_the_benchmarks_own_low_resolution_is_what_would_be_made(name, scale):
    folder = SHARED / name
    read = Pairs(pair_pictures([folder / "HR"], [folder / f"LRx{scale}"], scale=scale), scale, 8, 0)
    made = Pairs(pair_pictures([folder / "HR"]), scale, 8, 0)
    assert len(read) == len(made) == (5 if name == "set5" else 14)
    for pair, other in zip(read.pairs, made.pairs, strict=True):
        assert (pair[1] == other[1]).all()
        assert np.abs(pair[0].astype(int) - other[0]).max() <= 1

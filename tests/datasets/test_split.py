"""Validation pictures by rule: the same everywhere, about their share, hardly moved by what is added."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.datasets.split import split_by_name
from densekit.errors import DataError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0."), min_size=1, max_size=8)
NAMES = st.lists(TEXT, unique=True, min_size=2, max_size=60)
SHARES = st.floats(0.001, 0.999)


def items(names, folder="f"):
    return [(Path(folder, f"{name}.png"), Path("masks", f"{name}.tif")) for name in names]


def chosen(names, share):
    return {item[0].stem for item in split_by_name(items(names), share)[1]}


def test_the_lowest_hashes_validate():
    names = [f"{number:04d}" for number in range(1, 801)]
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert chosen(names, 0.1) == set(ranked[:80])
    assert sorted(chosen(names[:10], 0.3)) == ["0004", "0008", "0010"]  # for ever: a run must find its split again


@given(NAMES, SHARES)
def test_every_item_is_on_one_side_in_its_order_and_the_share_is_kept(names, share):
    all_items = items(names)
    train, val = split_by_name(all_items, share)
    assert sorted(train + val) == sorted(all_items)
    assert train == [item for item in all_items if item in train]
    assert val == [item for item in all_items if item in val]
    assert len(val) == min(max(1, math.ceil(Fraction(str(share)) * len(names))), len(names) - 1)
    assert train


@given(NAMES, SHARES, st.randoms(use_true_random=False))
def test_neither_order_nor_folder_nor_suffix_matters(names, share, random):
    shuffled = random.sample(names, len(names))
    moved = [(Path("other", "place", f"{name}.jpg"),) for name in shuffled]
    assert {item[0].stem for item in split_by_name(moved, share)[1]} == chosen(names, share)


@given(NAMES, SHARES)
def test_a_picture_that_is_added_moves_at_most_one_other(names, share):
    *before, added = names
    if len(before) >= 2:
        one, other = chosen(before, share), chosen(names, share)
        assert len((one ^ other) - {added}) <= 1


def test_pictures_of_one_name_stay_together_wherever_they_lie():
    both = items("abcdefgh", "left") + items("abcdefgh", "right") + items("abcdefgh", "left")
    train, val = split_by_name(both, 0.25)
    assert len(val) == 6
    assert not {item[0].stem for item in train} & {item[0].stem for item in val}


def test_a_share_in_decimals_is_meant_exactly():
    assert len(chosen([str(number) for number in range(100)], 0.07)) == 7  # 0.07 * 100 is more than 7 in floating point


@pytest.mark.parametrize("names", ["a", "aaa", ""])
def test_one_name_cannot_be_split(names):
    with pytest.raises(
        DataError, match=rf"data\.val_share=0\.2: found {len(names)} pictures of {len(set(names))} names"
    ):
        split_by_name(items(names), 0.2)

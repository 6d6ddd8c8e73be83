from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import load_config, parse_config
from densekit.config.commented import WIDTH, commented_yaml
from densekit.plain_yaml import read_yaml

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 2**40), st.floats(1e-9, 1e9), TEXTS)
VALUES = st.one_of(SCALARS, st.lists(st.integers(0, 255)), st.lists(TEXTS, min_size=2), st.dictionaries(TEXTS, SCALARS))


@given(st.dictionaries(st.sampled_from("abcdefgh"), VALUES, min_size=1), st.text("xyz :#", max_size=130))
def test_what_is_written_is_read_again(section, comment):
    comments = {f"s.{key}": comment for key in section}
    text = commented_yaml(["what it is", ""], {"task": "seg", "s": section, "empty": {}}, comments)
    document = read_yaml(text)
    assert not document.faults
    assert document.value == {"task": "seg", "s": section}
    assert text.isascii()


@pytest.mark.parametrize("text", ["no", "1e-4", "12", "a: b", "#x", "null", "it's", "~"])
def test_texts_that_yaml_reads_as_something_else_stay_texts(text):
    assert read_yaml(commented_yaml([], {"s": {"k": text, "l": [text, text]}}, {})).value["s"] == {
        "k": text,
        "l": [text, text],
    }


def test_comments_stand_behind_or_above():
    text = commented_yaml(["head"], {"s": {"a": 1, "b": 2}}, {"s.a": "short", "s.b": "y" * WIDTH})
    assert text.splitlines() == ["# head", "s:", "  a: 1  # short", f"  # {'y' * WIDTH}", "  b: 2"]


def test_a_shipped_config_comes_out_equal():
    config = load_config("seg/fc_densenet_nuclei")
    sections = config.model_dump(mode="json", exclude_defaults=True)
    assert parse_config(commented_yaml([], sections, {})) == config

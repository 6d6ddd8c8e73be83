from __future__ import annotations

import datetime
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit.plain_yaml import MAX_DEPTH, dotted, read_yaml, shorten

SCALARS = [
    ("1e-4", "1e-4"),
    ("1e4", "1e4"),
    ("1.0e4", "1.0e4"),
    ("1.0e-4", 1e-4),
    ("1.0e+4", 1e4),
    ("no", False),
    ("off", False),
    ("on", True),
    ("yes", True),
    ("y", "y"),
    ("010", 8),
    ("0801", "0801"),
    ("0o10", "0o10"),
    ("none", "none"),
    ("None", "None"),
    ("~", None),
    ("null", None),
    ("", None),
    ("1:30", 90),
    ("12:30:45", 45045),
    ("2026-01-01", datetime.date(2026, 1, 1)),
    ("1_000", 1000),
    ("1.10", 1.1),
    ("nan", "nan"),
    (".inf", math.inf),
    ("'010'", "010"),
]


@pytest.mark.parametrize(("written", "value"), SCALARS)
def test_a_scalar_arrives_as_the_safe_loader_of_pyyaml_reads_it(written, value):
    document = read_yaml(f"key: {written}")

    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)
    assert yaml.safe_load(f"key: {written}") == document.value
    assert not document.faults


def test_nan_with_a_dot_arrives_as_a_float():
    assert math.isnan(read_yaml(".nan").value)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("a: =", [(1, "'=': not a value; put text in quotes")]),
        ("a: 2026-02-30", [(1, "'2026-02-30': not a value; put text in quotes")]),
        ("a: 0x" + "f" * 17, [(1, "'0xfffffffffffffffff': too large a number")]),
        (
            "\na: @x",
            [(2, "not valid YAML: while scanning for the next token, found character that cannot start any token")],
        ),
        ("a: [1\n", [(2, "not valid YAML: while parsing a flow sequence, did not find expected ',' or ']'")]),
        (
            "a: 1\n---\nb: 2",
            [(2, "not valid YAML: expected a single document in the stream, but found another document")],
        ),
        ("a: 'x\x00'", [(1, "not valid YAML: holds characters that text cannot hold")]),
        ("a: \ud800", [(1, "not valid YAML: holds characters that text cannot hold")]),
        ("a: 1\nb: 2\na: 3", [(3, "a: given twice, first in line 1")]),
        (
            "a:\n  b: 1\n  b: 2\na: 3",
            [(3, "a.b: given twice, first in line 2"), (4, "a: given twice, first in line 1")],
        ),
        ("? [1, 2]\n: 3", [(1, "a key must be a single word, not a list or a section")]),
    ],
)
def test_what_yaml_cannot_say_is_a_fault_with_its_line(text, faults):
    assert read_yaml(text).faults == faults


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [echo]",
        "a: !!python/name:os.system",
        "a: !!python/object/new:subprocess.Popen [[echo]]",
        "!!map {a: 1}",
        "a: !!int 3",
        "a: ! 3",
        "a: !own 3",
        "!!str a: 3",
        "%TAG ! tag:example.com,2026:\n---\na: !thing 3",
    ],
)
def test_a_tag_is_refused_and_builds_nothing(text):
    document = read_yaml(text)

    assert document.value is None
    assert not document.readable
    assert [message.split()[0] for _, message in document.faults] == ["tag"]
    assert document.faults[0][1].endswith("is not allowed; write the plain value")


def test_each_anchor_and_alias_is_refused_with_its_line():
    document = read_yaml("a: &x {lr: 1}\nb: 2\nc: *x\nd:\n  <<: *x\n")

    assert document.value is None
    assert document.faults == [
        (line, "anchors and aliases (& and *) are not allowed; write the value out") for line in (1, 3, 5)
    ]


def test_an_alias_bomb_of_9_to_the_11_entries_is_refused_before_it_unfolds():
    rows = ["a0: &a0 [lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]

    document = read_yaml("\n".join(rows))

    assert document.value is None
    assert len(document.faults) == 12 + 11 * 9


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000])
def test_deep_nesting_is_refused_before_anything_recurses(text):
    assert read_yaml(text).faults == [(1, f"nested deeper than {MAX_DEPTH} levels")]


def test_without_an_anchor_the_merge_key_is_a_key_like_any_other():
    assert read_yaml("<<: {a: 1}").value == {"<<": {"a": 1}}


def test_keys_are_kept_as_written():
    assert list(read_yaml("on: 1\n1: 2\nnull: 3\n'x y': 4").value) == ["on", "1", "null", "x y"]


def test_every_value_has_its_line():
    document = read_yaml("a:\n  b: 1\n  c:\n  - 2\n  - 3\nd: [4,\n  5]")

    assert document.lines == {
        (): 1,
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("d",): 6,
        ("d", 0): 6,
        ("d", 1): 7,
    }


def test_an_empty_text_is_none_without_a_fault():
    assert (read_yaml("# nothing\n").value, read_yaml("").faults) == (None, [])


def test_a_place_is_written_with_dots_and_brackets():
    assert dotted(("data", "train", 1)) == "data.train[1]"
    assert dotted(("a\n", "b")) == "a\\n.b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("rdm", "'rdm'"),
        (True, "true"),
        (None, "null"),
        (-4, "-4"),
        ("a\nb", "'a\\nb'"),
        ("x" * 99, "'" + "x" * 56 + "..."),
    ],
)
def test_a_value_is_shown_on_one_short_line(value, text):
    assert shorten(value) == text


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.text(alphabet="ab:-[]{}#&*!|>'\"%@`~=<,?0123456789.e_xo \n\t\x85\x00\ud800é", max_size=60))
def test_no_text_raises_or_passes_what_is_not_plain(text):
    document = read_yaml(text)

    assert document.readable or document.faults
    assert all(line >= 1 and message.isprintable() for line, message in document.faults)

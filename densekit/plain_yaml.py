"""YAML without its traps: plain values only, the line of each of them, and every fault in one pass.

Refused: tags (they can build objects), anchors and aliases (a few lines of them unfold to gigabytes), duplicate keys
(the last one would win without a word), deep nesting and integers beyond 64 bits. What a scalar means is PyYAML's
safe loader's: `no` is false, `010` is 8, `1:30` is 90, `1e-4` is text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from densekit.files import printable

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML without libyaml: the same rules, slower
    from yaml import SafeLoader  # type: ignore[assignment]

MAX_DEPTH = 16  # a config needs 4: section, key, list, list of colours

Location = tuple[str | int, ...]
"""Where a value stands: ("data", "train", 1) is the second entry of the list `train` in the section `data`."""


@dataclass
class Document:
    """What a YAML text holds."""

    value: Any = None
    """Dicts with text keys, lists and scalars; None for an empty text."""

    lines: dict[Location, int] = field(default_factory=dict)
    """Line of each value, of its key where it has one; from 1."""

    faults: list[tuple[int, str]] = field(default_factory=list)
    """(line, what is wrong), in the order they were found."""

    readable: bool = True
    """False if `value` is missing because the text is not YAML or holds what is refused."""


def read_yaml(text: str) -> Document:
    """Returns the document in `text`, with its faults; raises nothing."""
    document = Document()
    try:
        document.faults += _refused_syntax(text)
        if not document.faults:
            loader = SafeLoader(text)
            node = loader.get_single_node()
            document.value = None if node is None else _build(loader, node, (), document)
            return document
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        document.faults.append((line, f"not valid YAML: {printable(reason)}"))
    except (yaml.YAMLError, UnicodeError):  # control characters, lone surrogates
        document.faults.append((1, "not valid YAML: holds characters that text cannot hold"))
    document.readable = False
    return document


def _refused_syntax(text: str) -> Iterator[tuple[int, str]]:
    """Yields a fault for each tag, anchor and alias, from the parser's events alone, so that nothing can unfold."""
    depth = 0
    events: Iterator[Any] = yaml.parse(text, Loader=SafeLoader)
    for event in events:
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            yield line, f"nested deeper than {MAX_DEPTH} levels"
            return
        if getattr(event, "anchor", None):
            yield line, "anchors and aliases (& and *) are not allowed; write the value out"
        if getattr(event, "tag", None):
            yield line, f"tag '{printable(event.tag)}' is not allowed; write the plain value"


def _build(loader: Any, node: yaml.Node, location: Location, document: Document) -> Any:
    """Returns the value of `node`; notes lines and faults in `document`."""
    document.lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(loader, node, location, document)
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*location, index), document) for index, item in enumerate(node.value)]
    try:
        value = loader.construct_object(node)
    except (ValueError, yaml.YAMLError):  # 2026-02-30 looks like a date, = like a merge
        document.faults.append((node.start_mark.line + 1, f"{shorten(node.value)}: not a value; put text in quotes"))
        return node.value
    if isinstance(value, int) and value.bit_length() > 64:
        document.faults.append((node.start_mark.line + 1, f"{shorten(node.value)}: too large a number"))
        return 0
    return value


def _build_mapping(loader: Any, node: yaml.MappingNode, location: Location, document: Document) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line, key = key_node.start_mark.line + 1, key_node.value  # the key as written: `on` stays "on"
        if not isinstance(key_node, yaml.ScalarNode):
            document.faults.append((line, "a key must be a single word, not a list or a section"))
        elif key in result:
            first = document.lines[*location, key]
            document.faults.append((line, f"{dotted((*location, key))}: given twice, first in line {first}"))
        else:
            document.lines[*location, key] = line
            result[key] = _build(loader, value_node, (*location, key), document)
    return result


def dotted(location: Location) -> str:
    """Returns ("data", "train", 1) as "data.train[1]"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{printable(part)}" for part in location)
    return text.removeprefix(".")


def shorten(value: object) -> str:
    """Returns a value as YAML would write it, on one line that fits a message."""
    words = {"True": "true", "False": "false", "None": "null"}
    text = repr(value) if isinstance(value, str) else words.get(str(value), printable(value))
    return text if len(text) <= 60 else f"{text[:57]}..."

"""A config as YAML text with comments, as a person would write it: flat, and no key that is not meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

WIDTH = 120  # of a line with its comment


def commented_yaml(header: Sequence[str], sections: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """Returns the text of a config.

    Args:
        header: lines above it, without the `#`.
        sections: values and sections of keys, in this order; empty sections are left out.
        comments: by key, such as "train.batch_size"; behind the value, or above it where the line would be too long.
    """
    lines = [f"# {line}".rstrip() for line in header]
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            lines += _entry("", name, section, comments.get(name))
        elif section:
            lines.append(f"{name}:")
            for key, value in section.items():
                lines += _entry("  ", key, value, comments.get(f"{name}.{key}"))
    return "\n".join(lines) + "\n"


def _entry(indent: str, key: str, value: Any, comment: str | None) -> list[str]:
    line = f"{indent}{key}: {_inline(value)}"
    if comment is None:
        return [line]
    beside = f"{line}  # {comment}"
    return [beside] if len(beside) <= WIDTH else [f"{indent}# {comment}", line]


def _inline(value: Any) -> str:
    """Returns a value in YAML's flow style, on one line and in ASCII, so that reading gives it back."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]  # one text stands for a list of it
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")

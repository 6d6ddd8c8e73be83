"""Where each value of a config is from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from densekit.config import find_and_read, parse_config
from densekit.files import printable
from densekit.plain_yaml import dotted, read_yaml


def annotated_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> str:
    """Returns the YAML of a config with every default written out and, as a comment, where each value is from.

    Raises:
        ConfigError: as `load_config`.
    """
    path, text = find_and_read(name_or_path)
    config = parse_config(text, overrides, source=printable(path))
    origins = {dotted(key): f"{printable(path.name)}:{line}" for key, line in read_yaml(text).lines.items()}
    origins |= dict.fromkeys((override.partition("=")[0] for override in overrides), "command line")
    section, lines = "", []
    for line in config.to_yaml().splitlines():
        if found := re.match(r"( *)(\w+):", line):
            key = f"{section}.{found[2]}" if found[1] else found[2]
            section = section if found[1] else key
            is_section = line.endswith(":") and not found[1]
            line = line if is_section else f"{line}  # {origins.get(key, 'default')}"
        lines.append(line)
    return "\n".join(lines) + "\n"

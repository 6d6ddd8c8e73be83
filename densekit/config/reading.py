"""Configs from YAML files and `key=value` overrides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import densekit
from densekit.config.schema import Config
from densekit.errors import ConfigError, suggest
from densekit.faults import Faults
from densekit.files import printable
from densekit.plain_yaml import read_yaml, shorten

MAX_BYTES = 1 << 20  # a long config has 10 KiB
SUFFIXES = (".yaml", ".yml")


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the config in a YAML file, or the shipped one of that name, such as "sr/rdn_tiny_x2".

    `overrides` are `section.key=value`, where value is read as the file would be: `train.seed=1`, `data.train=[a, b]`.

    Raises:
        ConfigError: no such config, or the faults of file and overrides: all of them, one line each.
    """
    path, text = find_and_read(name_or_path)
    return parse_config(text, overrides, source=printable(path))


def find_and_read(name_or_path: str | Path) -> tuple[Path, str]:
    """Returns the path and the text of a config file, or of the shipped config of that name.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = _find_config(str(name_or_path))
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{printable(path)}: larger than {MAX_BYTES} bytes, so not a config")
        return path, path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{printable(path)}: cannot be read as a config: {reason}") from error


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str = "config") -> Config:
    """Returns the config that YAML `text` holds; see `load_config`. `source` is the file's name in messages."""
    document = read_yaml(text)
    faults = Faults(source, document.lines, Config)
    for line, message in document.faults:
        faults.add_line(line, message)
    data = {} if document.value is None else document.value
    if not isinstance(data, dict):
        faults.add_line(1, "must hold sections of keys, such as model: and train:")
    if not document.readable or not isinstance(data, dict):  # each key would be missing, which says nothing new
        raise faults.error()
    for override in overrides:
        _apply_override(data, override, faults)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            faults.add_details(details)
        raise faults.error() from None
    if faults.entries:
        raise faults.error()
    return config


def list_configs() -> list[str]:
    """Returns the names of the shipped configs, sorted: "seg/fc_densenet_camvid", "sr/rdn_tiny_x2", ..."""
    root = _shipped_root()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.yaml"))


def config_hash(config: Config) -> str:
    """Returns the SHA-256 (hexadecimal) of the config as canonical JSON: equal configs, equal hashes."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def schema_json() -> str:
    """Returns the JSON schema of a config file, for editors: what `configs/schema.json` holds."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _shipped_root() -> Path:
    package = Path(densekit.__file__).parent
    wheel, checkout = package / "configs", package.parent / "configs"
    return wheel if wheel.is_dir() else checkout


def _find_config(name: str) -> Path:
    path = Path(name)
    if path.suffix in SUFFIXES and path.exists():
        return path
    names = list_configs()
    if name in names:
        return _shipped_root() / f"{name}.yaml"
    what = f"{printable(name)}: no such file" if path.suffix in SUFFIXES else f"no config named {name!r}"
    raise ConfigError(f"{what}{suggest(name, names)} (a path or one of: {', '.join(names)})")


def _apply_override(data: dict[str, Any], override: str, faults: Faults) -> None:
    """Sets one `section.key=value` in `data`, or notes why it cannot."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(part.isidentifier() for part in parts):
        faults.add_override(f"{shorten(override)}: must be key=value, such as train.seed=1")
        return
    document = read_yaml(text)
    for _, message in document.faults:
        faults.add_override(f"{printable(override)}: {message}")
    if document.faults:
        return
    section = data
    for depth, part in enumerate(parts[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            faults.add_override(f"{printable(override)}: {'.'.join(parts[:depth])} is a value, not a section of keys")
            return
    section[parts[-1]] = document.value
    faults.overridden.add(tuple(parts))

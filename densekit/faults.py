"""The faults of a config, each one line in our own words: where, which key, what is expected, what may be meant."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from densekit.errors import ConfigError, suggest
from densekit.plain_yaml import Location, dotted, shorten

# pydantic's error types in our words; {names} come from the error's context
_WORDING = {
    "missing": "missing, and it has no default",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt:.15g}",
    "greater_than_equal": "must be {ge:.15g} or more",
    "less_than": "must be less than {lt:.15g}",
    "less_than_equal": "must be {le:.15g} or less",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of ordinary size",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "string_too_short": "must not be empty",
    "list_type": "must be a list",
    "too_short": "must have {min_length} or more entries, not {actual_length}",
    "too_long": "must have {max_length} or fewer entries, not {actual_length}",
    "model_type": "must be a section of keys, not a single value",
}
_WITHOUT_VALUE = ("missing", "model_type", "list_type", "too_short", "too_long")


@dataclass
class Faults:
    """Collects faults with their place; `error` puts them in the order of the file, the command line's last."""

    source: str
    lines: Mapping[Location, int]
    schema: type[BaseModel]
    entries: list[tuple[float, str]] = field(default_factory=list)
    overridden: set[Location] = field(default_factory=set)

    def add_line(self, line: int, message: str) -> None:
        """Notes a fault in a line of the file."""
        self.entries.append((line, f"{self.source}:{line}: {message}"))

    def add_override(self, message: str) -> None:
        """Notes a fault in a `key=value`."""
        self.entries.append((math.inf, f"{message} (command line)"))

    def add_at(self, location: Location, message: str) -> None:
        """Notes a fault of the key at `location`, or of the section that should hold it."""
        prefixes = [location[:length] for length in range(len(location), -1, -1)]
        made_by_override = location not in self.lines and any(
            key[: len(location)] == location for key in self.overridden
        )
        if made_by_override or any(prefix in self.overridden for prefix in prefixes):
            self.add_override(message)
        else:
            self.add_line(next((self.lines[prefix] for prefix in prefixes if prefix in self.lines), 1), message)

    def add_details(self, details: ErrorDetails) -> None:
        """Notes one of pydantic's errors in our words."""
        kind, context = details["type"], details.get("ctx", {})
        # without the tags of kinds that a value may be of, "<name>" or "<list>"
        location = tuple(part for part in details["loc"] if not str(part).startswith("<"))
        if kind == "together":
            for key, message in context["faults"]:
                self.add_at(tuple(key.split(".")), f"{key}: {message}")
            return
        if kind == "extra_forbidden":
            self.add_at(location, f"{dotted(location)}: unknown key{self._nearest_key(location)}")
            return
        message = _WORDING[kind].format(**context) if kind in _WORDING else details["msg"]
        if kind == "literal_error":
            message += suggest(str(details["input"]), re.findall(r"'([^']*)'", context["expected"]))
        if details["input"] in ("none", "None") and self._is_optional(location):
            message += "; no value is written null"
        value = "" if kind in _WITHOUT_VALUE else f"={shorten(details['input'])}"
        self.add_at(location, f"{dotted(location)}{value}: {message}")

    def error(self) -> ConfigError:
        """Returns the error that holds every fault, a line each."""
        return ConfigError("\n".join(text for _, text in sorted(self.entries, key=lambda entry: entry[0])))

    def _nearest_key(self, location: Location) -> str:
        """Returns "; did you mean ...?" with a key of the same section, or the section where this very key belongs."""
        key = str(location[-1])
        sections = {name: self._fields(name) for name in self.schema.model_fields}
        siblings = sections if len(location) == 1 else sections[str(location[0])]
        elsewhere = [f"{name}.{key}" for name, fields in sections.items() if key in fields]
        return suggest(key, siblings) or (f"; did you mean {elsewhere[0]!r}?" if elsewhere else "")

    def _is_optional(self, location: Location) -> bool:
        """Says whether the key takes null."""
        info = self._fields(str(location[0])).get(str(location[-1]))
        return info is not None and info.default is None

    def _fields(self, name: str) -> dict[str, FieldInfo]:
        """Returns the keys of a section; none for a top-level value."""
        section = self.schema.model_fields[name].annotation
        return section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}

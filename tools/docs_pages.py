"""What mkdocs calls while it builds: pages that are made from the code, so that they say what it does.

A page says where: `<!-- generate: commands -->`. README, changelog and contributing become pages as they are.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from densekit import errors
from densekit.cli.main import root
from densekit.config import Config, list_configs
from densekit.metrics import PROTOCOLS, SEG_PROTOCOLS

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
WHOLE = {"readme.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": ".github/CONTRIBUTING.md"}
MOVED = {"configs": "reference/configs.md", "docs/pictures/": "pictures/"} | {old: new for new, old in WHOLE.items()}
LINK = re.compile(r"(!?\[)([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
PLACE = re.compile(r"^<!-- generate: (\w+) -->$", re.MULTILINE)
CLASSES = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}


class Message(NamedTuple):
    """One place in the code where an error is made, with the text that it gets; `{...}` is filled in."""

    place: str  # densekit/image.py
    kind: str  # ImageError
    text: str


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the documents that stand outside docs/."""
    from mkdocs.structure.files import File

    for name, source in WHOLE.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, name, content=moved(text)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in what is made from the code."""
    return PLACE.sub(lambda match: PAGES[match[1]](), markdown)


def moved(text: str) -> str:
    """Returns a document of the repository with the links that it needs as a page; others become plain text."""

    def link(match: re.Match[str]) -> str:
        opening, label, target, anchor = match[1], match[2], match[3], match[4] or ""
        for old, new in MOVED.items():
            if target.startswith(old):
                return f"{opening}{label}]({new + target.removeprefix(old)}{anchor})"
        return match[0] if "://" in target else label

    return LINK.sub(link, text).replace('="docs/pictures/', '="pictures/')


def cell(text: str) -> str:
    """Returns text for a cell of a table, with nothing in it that Markdown would take for its own."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(re.sub(r"([*<\[\]|])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns a table in Markdown; cells are Markdown already."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])


def commands() -> str:
    """Returns a section for each command: its own help, and a table of what it takes."""
    return "\n\n".join(_command(words, command) for words, command in leaves(("densekit",), root))


def leaves(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yields the words of each command that does something, groups left out."""
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from leaves((*words, name), child)
    else:
        yield words, command


def _command(words: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(command, info_name=" ".join(words))
    options = (p for p in command.get_params(context) if isinstance(p, click.Option) and "--help" not in p.opts)
    records = [option.get_help_record(context) for option in options]
    rows = [(f"`{record[0]}`", cell(record[1])) for record in records if record]
    paragraphs = [_paragraph(text) for text in (command.help or "").split("\n\n")]
    usage = " ".join([*words, *command.collect_usage_pieces(context)])
    options = [table(("option", ""), rows)] if rows else []
    return "\n\n".join([f"## {' '.join(words)}", f"```text\n{usage}\n```", *paragraphs, *options])


def _paragraph(text: str) -> str:
    """Returns a paragraph of a help text; one that click prints line by line, for its mark `\\b`, keeps its lines."""
    if "\b" in text:
        lines = inspect.cleandoc(text.replace("\b", "")).splitlines()
        return "\n".join(["```text", *lines, "```"])
    return cell(text).replace("\\|", "|")


def configs() -> str:
    """Returns every key of a config, section by section."""
    parts, definitions = [], Config.model_json_schema()["$defs"]
    for name, field in Config.model_fields.items():
        kind = next((k for k in definitions if k in str(field.annotation)), None)
        if kind is None:
            parts.append(f"## {name}\n\n{cell(field.description or '')} {_values(_property(Config, name))}.")
            continue
        section = next(c for c in _sections(field.annotation) if c.__name__ == kind)
        about = cell((section.__doc__ or "").strip())
        rows = (
            (
                f"`{name}.{key}`",
                _values(definitions[kind]["properties"][key]),
                _default(definitions[kind]["properties"][key], key in definitions[kind].get("required", ())),
                cell(child.description or ""),
            )
            for key, child in section.model_fields.items()
        )
        parts.append(f"## {name}\n\n{about}\n\n{table(('key', 'values', 'default', 'meaning'), rows)}")
    return "\n\n".join(parts)


def _sections(annotation: Any) -> list[type]:
    """Returns the classes in `Section` or `Section | None`."""
    return [annotation] if isinstance(annotation, type) else [a for a in annotation.__args__ if isinstance(a, type)]


def _property(model: Any, key: str) -> dict[str, Any]:
    return model.model_json_schema()["properties"][key]


def _default(schema: dict[str, Any], required: bool) -> str:
    if required:
        return "*required*"
    text = str(schema.get("default"))
    shown = {"None": "null", "True": "true", "False": "false", "": "empty", "[]": "empty", "{}": "empty"}
    return f"`{shown.get(text, text)}`" if shown.get(text) != "empty" else "empty"


def _values(schema: dict[str, Any]) -> str:
    """Returns the values that a JSON schema lets through, in words."""
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_values(part) for part in schema.get("anyOf") or schema["oneOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_values(schema['items'])}"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    names |= {"null": "`null`", "object": "names with values"}
    return " ".join([names.get(str(kind), "any value"), *_range(schema)])


def _range(schema: dict[str, Any]) -> Iterator[str]:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    yield from (f"from {low}" for _ in [0] if low is not None)
    yield from (f"above {above}" for _ in [0] if above is not None)
    yield from (f"to {high}" for _ in [0] if high is not None)
    yield from (f"below {below}" for _ in [0] if below is not None)


def shipped() -> str:
    """Returns the shipped configs, each with the sentence that it opens with."""
    rows = ((f"`{name}`", cell(_opening(ROOT / "configs" / f"{name}.yaml"))) for name in list_configs())
    return table(("config", "what it is"), rows)


def _opening(path: Path) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    return re.split(r"(?<=[a-z0-9)])[.:](?= [A-Z])", comment, maxsplit=1)[0].rstrip(".:")


def protocols() -> str:
    """Returns the protocols of both tasks."""
    rows = ((f"`{p.name}`", cell(p.description)) for p in PROTOCOLS.values())
    more = ((f"`{p.name}`", str(len(p.classes) or "any"), cell(p.description)) for p in SEG_PROTOCOLS.values())
    return (
        f"## Super-resolution\n\n{table(('protocol', 'what is compared, and who reports so'), rows)}\n\n"
        f"## Segmentation\n\n{table(('protocol', 'classes', 'what is measured'), more)}"
    )


def messages(folder: Path = ROOT / "densekit") -> Iterator[Message]:
    """Yields every error of the code with its text, in the order of the files."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in CLASSES and node.args:
                text = _template(node.args[0])
                if re.search(r"[a-z]{3}", re.sub(r"\{[^}]*\}", "", text)):  # not what is handed on from below
                    yield Message(path.relative_to(folder.parent).as_posix(), ast.unparse(node.func), text)


def _template(node: ast.expr) -> str:
    """Returns the text of an f-string as a person reads it, with `...` for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) if isinstance(part, ast.Constant) else "{...}" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return "{...}"


def all_messages() -> str:
    """Returns every message by class."""
    found, parts = list(messages()), []
    for name, kind in CLASSES.items():
        rows = sorted({(message.text, message.place) for message in found if message.kind == name})
        if rows:
            parts.append(f"## {name}")
            lines = ((f"`{text}`", f"`{place}`") for text, place in rows)
            code = getattr(kind, "exit_code", None) if name != "Interrupted" else "130 or 143"
            parts += [f"Exit code {code}.", table(("message", "from"), lines)]
    return "\n\n".join(parts)


PAGES = {
    "commands": commands,
    "configs": configs,
    "shipped": shipped,
    "protocols": protocols,
    "messages": all_messages,
}

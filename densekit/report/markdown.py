"""A table for a paper or an issue: each picture's figures and their summary, with the protocol beneath."""

from __future__ import annotations

import re
from collections.abc import Sequence

from densekit.files import printable
from densekit.report import wording
from densekit.report.evaluation import Evaluation


def to_markdown(evaluation: Evaluation) -> str:
    """Returns the report as GitHub's Markdown, pictures in the order of the data set."""
    keys = wording.columns(evaluation) or [evaluation.metric]
    name = "all" if evaluation.matrix is not None else "mean"
    rows = [
        [escape(row.name), *(wording.show(key, row.figures.get(key)) for key in keys)]
        for row in evaluation.rows
        if not row.error
    ]
    rows.append([f"**{name}**", *(f"**{wording.show(key, evaluation.summary.get(key))}**" for key in keys)])
    text = [
        f"# {escape(evaluation.title)}",
        "",
        f"**{wording.headline(evaluation)}** {escape(wording.label(evaluation.metric))}, {wording.basis(evaluation)}, "
        f"protocol {escape(wording.protocol(evaluation))}.",
        "",
        *_table(["picture", *(escape(wording.head(key)) for key in keys)], rows),
        "",
    ]
    if failed := wording.failed(evaluation):
        text += [f"{len(failed)} of {wording.count(evaluation).total} failed and left out:", ""]
        text += [f"- {escape(row.name)}: {escape(row.error)}" for row in failed]
        text.append("")
    more = [(key, value) for key, value in evaluation.summary.items() if key not in keys]
    if more:
        text += [*_table(["figure", "value"], [[escape(wording.head(k)), wording.show(k, v)] for k, v in more]), ""]
    if evaluation.per_class:
        heads = list(evaluation.per_class)
        rows = [
            [escape(name), *(wording.show(key, evaluation.per_class[key][number]) for key in heads)]
            for number, name in enumerate(evaluation.classes)
        ]
        text += [*_table(["class", *(escape(wording.head(key)) for key in heads)], rows), ""]
    long = {key: value for key, value in evaluation.conditions.items() if "\n" in value.strip()}
    text += [f"- {escape(key)}: {escape(value)}" for key, value in evaluation.conditions.items() if key not in long]
    for key, value in long.items():
        text += ["", f"{escape(key)}:", "", *(f"    {printable(line)}" for line in value.splitlines())]
    return "\n".join(text).rstrip() + "\n"


def escape(value: str) -> str:
    """Returns text that Markdown shows as it is, on one line, in a cell or out of one: no marks, links or HTML."""
    escaped = re.sub(r"([\\`*_\[\]<>|~$&#!])", r"\\\1", printable(value))
    escaped = re.sub(r"(?i)(:)(//)|(www)(\.)", lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"{m[3]}\\{m[4]}", escaped)
    return re.sub(r"^(\d*)([-+.)=])", r"\1\\\2", escaped)  # the start of a list, a rule or a heading


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "|---|" + "--:|" * (len(heads) - 1)
    return ["| " + " | ".join(heads) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)]

"""HTML that cannot be forgotten to be escaped: plain text becomes `Html` through `tag` and `text` alone."""

from __future__ import annotations

import html

from densekit.files import printable

_VOID = frozenset({"br", "img", "input", "link", "meta"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """Returns any text as markup on one line: markup signs, control characters and lone surrogates escaped."""
    return value if isinstance(value, Html) else Html(html.escape(printable(value), quote=True))


def lines(value: str) -> Html:
    """Returns text of several lines as markup, its line breaks kept, for <pre>."""
    return Html("\n".join(text(line) for line in value.splitlines()))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Returns an element; what is not `Html` yet is escaped.

    An attribute of None or False is left out, one of True stands without a value. `class_` means class, and other
    underscores are hyphens.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{text(value)}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in _VOID else f"{start}{''.join(text(child) for child in children)}</{name}>")


def join(parts: list[Html], between: str = "") -> Html:
    """Returns pieces of markup one after the other."""
    return Html(text(between).join(parts))

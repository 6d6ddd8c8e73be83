"""What a page says, as read by Python's own HTML parser."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"br", "img", "input", "link", "meta"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    def find(self, name: str = "", **attributes: str) -> list[Element]:
        """Returns the elements below of that name and with those attributes; a class is one of several."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if (not name or child.name == name) and all(child.has(key, value) for key, value in attributes.items()):
                    found.append(child)
                found += child.find(name, **attributes)
        return found

    def has(self, key: str, value: str) -> bool:
        key = key.rstrip("_").replace("_", "-")
        own = self.attributes.get(key) or ""
        return value in own.split() if key == "class" else own == value

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack = [Element("", {})]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        element = Element(tag, dict(attrs))
        self.stack[-1].children.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_endtag(self, tag):
        assert self.stack.pop().name == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.stack[-1].children.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


def parse(html: str) -> Element:
    """Returns the page; everything that was opened must be closed."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    (root,) = parser.stack
    return root

"""Writes the tables of the README from the cards of the embedded models. `python -m tools.figures`"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from densekit.cards import Card
from densekit.checkpoint import load_model
from densekit.pretrained import WEIGHTS, trained_cards

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- figures:begin (python -m tools.figures) -->", "<!-- figures:end -->"


def num_parameters(name: str) -> int:
    """Returns the number of an embedded model's parameters."""
    net, _ = load_model(WEIGHTS / f"{name}.safetensors")
    return sum(parameter.numel() for parameter in net.parameters())


def size(name: str) -> str:
    """Returns parameters and file size as two cells."""
    return f"{num_parameters(name):,} | {(WEIGHTS / f'{name}.safetensors').stat().st_size / 1e6:.2f} MB"


def sr_row(name: str, card: Card) -> str:
    """Returns the row of a super-resolution model."""
    figures = card.metrics
    score = f"**{figures['psnr']:.2f} dB** | {figures['bicubic']:.2f} dB"
    return (
        f"| `{name}` | x{card.arguments['scale']} | {size(name)} | {score} | {figures['data']}, {figures['protocol']} |"
    )


def seg_row(name: str, card: Card) -> str:
    """Returns the row of a segmentation model."""
    figures = card.metrics
    score = (
        f"IoU of {card.classes[-1]}: **{figures['iou']:.3f}**"
        if "iou" in figures
        else f"mIoU: **{figures['miou']:.3f}**"
    )
    return f"| `{name}` | {len(card.classes)} | {size(name)} | {score} | {figures['data']}, {figures['protocol']} |"


def origin_row(name: str, card: Card) -> str:
    """Returns the row that says where a model comes from."""
    return f"| `{name}` | {card.data} | {card.licence} | `{card.recipe}` |"


def table(head: str, rows: Iterable[str]) -> list[str]:
    """Returns the lines of a table, head and rows as Markdown."""
    return [head, "|---" * (head.count("|") - 1) + "|", *rows, ""]


def render() -> str:
    """Returns the block between the README's marks, marks included."""
    cards = trained_cards()
    rows = {task: {name: card for name, card in cards.items() if card.task == task} for task in ("sr", "seg")}
    lines = [
        *table(
            "| super-resolution | scale | parameters | file | PSNR | bicubic | measured on, protocol |",
            (sr_row(name, card) for name, card in rows["sr"].items()),
        ),
        *table(
            "| segmentation | classes | parameters | file | figure | measured on, protocol |",
            (seg_row(name, card) for name, card in rows["seg"].items()),
        ),
        *table(
            "| model | trained on | licence of that data | config |",
            (origin_row(name, card) for name, card in cards.items()),
        ),
    ]
    return "\n".join([BEGIN, *lines, END])


def main() -> None:
    text = README.read_text("utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(before + render() + after, "utf-8")
    print(README)


if __name__ == "__main__":
    main()

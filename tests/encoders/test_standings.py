from __future__ import annotations

import math
from xml.etree import ElementTree

from densekit.encoders.comparison import Comparison, Standing
from densekit.encoders.standings import COSTS, LEFT, PLOT_HEIGHT, PLOT_WIDTH, TOP, comparison_picture

SVG = "{http://www.w3.org/2000/svg}"
STANDINGS = (
    Standing("densenet121", 6_953_856, 925_000_000, 300 * 2**20, 25 * 2**20, 1.0, 0.3, 0.81),
    Standing("timm:resnet50", 23_508_032, 1_340_000_000, 350 * 2**20, 350 * 2**20, 0.8, 0.35, 0.78),
    Standing("<odd> & long", 1_000_000, 10_000_000, 10 * 2**20, 10 * 2**20, 0.1, 0.9, math.nan),
)


def drawn(*standings):
    """The panels of a picture, and what is below them."""
    root = ElementTree.fromstring(comparison_picture(Comparison("iou", 10, 8, 2, 2, standings), "all & one"))
    groups = list(root.find(f"{SVG}g"))
    panels = [group for group in groups if group.get("transform")]
    return root, panels


def marks(panel):
    """Name and place of each mark that says its score."""
    found = {}
    for shape in panel.iter():
        hint = shape.find(f"{SVG}title")
        if hint is not None:
            offset = float(shape.get("width", 0)) / 2
            place = [float(shape.get(f"c{axis}", shape.get(axis))) for axis in "xy"]
            found[hint.text.split(": ")[0]] = tuple(value + offset for value in place)
    return found


def test_each_cost_has_a_panel_with_a_mark_for_each_encoder_at_its_place():
    root, panels = drawn(*STANDINGS[:2])
    assert root.find(f"{SVG}title").text == "all & one"
    assert len(panels) == len(COSTS)
    for panel in panels:
        assert set(marks(panel)) == {"densenet121", "timm:resnet50"}
        for x, y in marks(panel).values():
            assert LEFT <= x <= LEFT + PLOT_WIDTH
            assert TOP <= y <= TOP + PLOT_HEIGHT
        assert marks(panel)["densenet121"][1] < marks(panel)["timm:resnet50"][1]  # a better score is higher up
    x_of_ours, x_of_theirs = (marks(panels[0])[name][0] - LEFT for name in ("densenet121", "timm:resnet50"))
    assert math.isclose(x_of_ours / x_of_theirs, 6_953_856 / 23_508_032, rel_tol=1e-3)


def test_where_a_policy_saves_memory_its_cost_is_shown_as_well():
    _, panels = drawn(*STANDINGS[:2])
    hollow = [[circle for circle in panel.iter(f"{SVG}circle") if circle.get("fill") == "#ffffff"] for panel in panels]
    assert [len(circles) for circles in hollow] == [0, 0, 1, 0]


def test_an_encoder_without_a_score_is_named_and_not_drawn():
    root, panels = drawn(*STANDINGS)
    assert all("<odd> & long" not in marks(panel) for panel in panels)
    assert "<odd> & long: nan" in [text.text for text in root.iter(f"{SVG}text")]
    assert len(drawn(STANDINGS[2])[1]) == len(COSTS)


def test_one_encoder_alone_is_drawn():
    assert all(len(marks(panel)) == 1 for panel in drawn(STANDINGS[0])[1])

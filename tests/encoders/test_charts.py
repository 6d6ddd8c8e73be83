from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from densekit.encoders import LayerGradient, Reuse, gradient_picture, reuse_picture
from densekit.encoders.charts import MAX_WIDTH, RAMP, shade

SVG = "{http://www.w3.org/2000/svg}"


def block(name, layers, *, has_reader=True):
    layer_names = [f"denselayer{i + 1}" for i in range(layers)]
    targets = (*layer_names, "transition") if has_reader else tuple(layer_names)
    weights = tuple(
        tuple(0.01 * (1 + row + column) if row <= column else math.nan for column in range(len(targets)))
        for row in range(layers + 1)
    )
    return Reuse(name, ("input", *layer_names), targets, weights)


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def test_a_heat_map_has_a_cell_for_each_connection_that_says_its_weight():
    root = ElementTree.fromstring(reuse_picture([block("block1", 3), block("block2", 2)], "reuse of <a> & b"))
    hints = [title.text for title in root.iter(f"{SVG}title")]
    assert hints[0] == "reuse of <a> & b"
    assert len(hints) - 1 == (1 + 2 + 3 + 4) + (1 + 2 + 3)
    assert "denselayer2 to transition: 0.06" in hints
    assert {"block1", "block2"} <= set(texts(root))


def test_the_strongest_source_of_each_column_is_darkest():
    root = ElementTree.fromstring(reuse_picture([block("block1", 4)], "reuse"))
    fills = {cell.find(f"{SVG}title").text: cell.get("fill") for cell in root.iter(f"{SVG}rect") if len(cell)}
    darkest = shade(1)
    for hint, fill in fills.items():
        source, target = hint.split(":")[0].split(" to ")
        is_last = source == ("denselayer4" if target == "transition" else before(target))
        assert (fill == darkest) == is_last, hint


def before(target):
    number = int(target.removeprefix("denselayer"))
    return "input" if number == 1 else f"denselayer{number - 1}"


def test_what_reads_the_whole_block_is_framed_and_nothing_else():
    frames = [
        sum(rect.get("stroke") is not None for rect in ElementTree.fromstring(picture).iter(f"{SVG}rect"))
        for picture in (
            reuse_picture([block("a", 3)], "reuse"),
            reuse_picture([block("a", 3, has_reader=False)], "reuse"),
        )
    ]
    assert frames == [1, 0]


def test_many_blocks_wrap_and_the_picture_stays_narrow():
    root = ElementTree.fromstring(reuse_picture([block(f"block{i}", 24) for i in range(6)], "reuse"))
    assert float(root.get("width")) <= MAX_WIDTH + 50
    assert float(root.get("height")) > 600


def test_shades_go_from_light_to_dark():
    light = [sum(int(shade(i / 20)[at : at + 2], 16) for at in (1, 3, 5)) for i in range(21)]
    assert light == sorted(light, reverse=True)
    assert shade(0) == "#{:02x}{:02x}{:02x}".format(*RAMP[0])
    assert (shade(-1), shade(2)) == (shade(0), shade(1))


def norms(values):
    return [LayerGradient(f"layer{i}", value, 10) for i, value in enumerate(values)]


def test_gradients_are_drawn_by_depth_each_network_by_its_own_median():
    curves = [("densenet121", norms([8.0, 4.0, 2.0])), ("timm:vgg16", norms([0.1, 0.0, 0.4, 0.4]))]
    root = ElementTree.fromstring(gradient_picture(curves, "gradients"))
    lines = [line.get("points").split() for line in root.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [3, 3]  # a layer without a gradient is no point
    heights = [[float(point.split(",")[1]) for point in points] for points in lines]
    assert heights[0][1] == heights[1][1] == heights[1][2]  # both medians stand at 1
    assert heights[0] == sorted(heights[0])
    assert {"densenet121 (3 layers)", "timm:vgg16 (4 layers)"} <= set(texts(root))
    strokes = [line.get("stroke") for line in root.iter(f"{SVG}polyline")]
    assert len(set(strokes)) == 2


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0]])
def test_flat_and_silent_networks_are_drawn_too(values):
    assert ElementTree.fromstring(gradient_picture([("a", norms(values))], "gradients")) is not None

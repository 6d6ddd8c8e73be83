"""Figures of validation pictures that a training run holds in memory, each by itself and together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from densekit.errors import DataError
from densekit.evaluate.common import count_of, mean_of, name_of
from densekit.evaluate.figures import FIGURES, Pixels, Scene
from densekit.evaluate.measures import Measures
from densekit.evaluate.rules import find_rule
from densekit.evaluate.views import views_seg, views_sr
from densekit.losses import IGNORE
from densekit.metrics import PROTOCOLS, seg_protocol
from densekit.predict.overlay import RGB
from densekit.report import Evaluation, Row
from densekit.tasks import Sample

Made = dict[str, Pixels]
Given = Iterable[tuple[Sample, Callable[[], Made]]]  # each with what makes its pictures, now or again


def evaluate_enlarged(given: Given, protocol: str, figures: Mapping[str, float] | None = None) -> Evaluation:
    """Returns PSNR and SSIM of super-resolved pictures.

    Args:
        given: the pictures.
        protocol: a name in `densekit.metrics.PROTOCOLS`.
        figures: of the whole set, where `given` is only a part of it.
    """
    rows = []
    for sample, make in given:
        scene = Scene(sample.result, sample.truth, sample.given, len(sample.truth) // len(sample.given), protocol)
        rows.append(Row(_name(sample), {key: _figure(key, scene) for key in ("psnr", "ssim")}, pictures=make))
    return Evaluation(
        title="validation pictures",
        task="sr",
        metric="psnr",
        rows=rows,
        summary=dict(figures) if figures is not None else {key: mean_of(rows, key) for key in ("psnr", "ssim")},
        conditions={
            "protocol": protocol,
            "protocol_means": PROTOCOLS[protocol].description,
            "pictures": count_of(rows),
        },
    )


def evaluate_segmented(
    given: Given,
    protocol: str,
    classes: Sequence[str],
    palette: Sequence[RGB],
    figures: Mapping[str, float] | None = None,
) -> Evaluation:
    """Returns the figures of segmented pictures: of the set, of each class and of each picture.

    Args:
        given: the pictures; void is 255 in their truth.
        protocol: a name in `densekit.metrics.SEG_PROTOCOLS`.
        classes: names, in the order of their ids.
        palette: the colour of each class.
        figures: of the whole set, where `given` is only a part of it; then there are none of classes.
    """
    measures = Measures(find_rule(protocol, len(classes), IGNORE))
    rows = [
        Row(_name(sample), measures.add(sample.result, sample.truth, None), pictures=make) for sample, make in given
    ]
    is_whole = figures is None
    return Evaluation(
        title="validation pictures",
        task="seg",
        metric=measures.rule.metric,
        rows=rows,
        summary=measures.summary() if figures is None else dict(figures),
        conditions={
            "protocol": protocol,
            "protocol_means": seg_protocol(protocol).description,
            "pictures": count_of(rows),
            **(measures.conditions() if is_whole else {}),
        },
        classes=tuple(classes),
        palette=tuple(palette),
        matrix=measures.total.matrix if is_whole else None,
        per_class=measures.per_class() if is_whole else {},
    )


def views(sample: Sample, palette: Sequence[RGB] = ()) -> Made:
    """Returns what there is to see of a sample; with a palette it is one of a segmentation."""
    if palette:
        return views_seg(sample.given, sample.result, sample.truth, palette, IGNORE)
    return views_sr(sample.given, sample.result, sample.truth)


def _name(sample: Sample) -> str:
    return name_of(sample.path, sample.path.parent)


def _figure(key: str, scene: Scene) -> float | None:
    try:
        return FIGURES[key](scene)
    except DataError:  # too small for SSIM's window
        return None

"""An evaluation as JSON, for programs."""

from __future__ import annotations

import json
import math

from densekit.report import wording
from densekit.report.evaluation import Evaluation

Figures = dict[str, float | None]


def to_json(evaluation: Evaluation) -> str:
    r"""Returns everything but the pictures as strict JSON; figures that are None, NaN or infinite become null.

    Bytes of a file name that are not text arrive as "\\udc80" .. "\\udcff" in letters: strict readers refuse a lone
    surrogate, and with it the file.
    """
    count = wording.count(evaluation)
    record = {
        "title": _text(evaluation.title),
        "task": evaluation.task,
        "metric": evaluation.metric,
        "measured": count.measured,
        "total": count.total,
        "complete": count.is_complete,
        "summary": _figures(evaluation.summary),
        "rows": [
            {"name": _text(row.name), "figures": _figures(row.figures), "error": _text(row.error) or None}
            for row in evaluation.rows
        ],
        "conditions": {_text(key): _text(value) for key, value in evaluation.conditions.items()},
        "classes": [_text(name) for name in evaluation.classes],
        "palette": [[int(value) for value in colour] for colour in evaluation.palette],
        "matrix": None if evaluation.matrix is None else evaluation.matrix.tolist(),
        "per_class": {_text(key): [_figure(v) for v in values] for key, values in evaluation.per_class.items()},
        "curves": {_text(k): [[_figure(x), _figure(y)] for x, y in points] for k, points in evaluation.curves.items()},
    }
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _figures(values: Figures) -> Figures:
    return {_text(key): _figure(value) for key, value in values.items()}


def _figure(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(value)  # NumPy's numbers too


def _text(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode()

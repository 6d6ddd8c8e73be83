"""Evaluations to report on, of random pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from densekit.report import Evaluation, Row
from densekit.report.evaluation import Pictures

HOSTILE = (
    "<script>alert(1)</script>.png",
    "\"><img src=x onerror='alert(1)'>.png",
    "a|b*c_d`e[f](http://example.com).png",
    "new\nline\ttab\x1b[31m\x00.png",
    "bad\udcff\ud800surrogate.png",
    "right-to-left\u202egnp.exe",
    "</title></style></script><b>",
    "--> <!-- ]]> &amp; &#60;",
    "ünï çødé 画像.png",
)


def sr_pictures(seed: int = 0, height: int = 96, width: int = 128, scale: int = 2) -> Pictures:
    rng = np.random.default_rng(seed)
    hr = rng.integers(0, 256, (height, width, 3), np.uint8)
    sr = np.clip(hr.astype(int) + rng.integers(-9, 10, hr.shape), 0, 255).astype(np.uint8)
    bicubic = np.clip(hr.astype(int) + rng.integers(-29, 30, hr.shape), 0, 255).astype(np.uint8)
    error = np.abs(hr.astype(int) - sr).astype(np.uint8) * 20
    return {"lr": hr[::scale, ::scale], "bicubic": bicubic, "sr": sr, "hr": hr, "error": error}


def sr_evaluation(
    names: Any = None, *, count: int = 9, failed: int = 0, with_pictures: bool = False, **changes: Any
) -> Evaluation:
    """Returns an evaluation whose row k has 30 - k dB, so that the last one is the worst."""
    made = (
        (lambda k: lambda: sr_pictures(k)) if with_pictures else lambda k: None
    )  # to draw them takes most of the time
    names = list(names if names is not None else (f"img_{k:03d}.png" for k in range(count)))
    rows = [Row(name, {"psnr": 30.0 - k, "ssim": 0.9 - k / 1000}, pictures=made(k)) for k, name in enumerate(names)]
    rows += [Row(f"broken_{k}.png", {}, "truncated PNG; expected a whole file") for k in range(failed)]
    fields = {
        "title": "rdn-tiny-x2 on noise",
        "task": "sr",
        "metric": "psnr",
        "rows": rows,
        "summary": {"psnr": 30 - (len(names) - 1) / 2, "ssim": 0.89},
        "conditions": {
            "protocol": "rdn-y",
            "resize": "benchmark",
            "command": "densekit sr eval",
            "config": "a: 1\nb: 2",
        },
    }
    return Evaluation(**{**fields, **changes})


def seg_evaluation(count: int = 3, **changes: Any) -> Evaluation:
    rng = np.random.default_rng(1)

    def pictures(k: int) -> Pictures:
        made = {key: rng.integers(0, 256, (60, 80, 3), np.uint8) for key in ("image", "prediction", "target", "wrong")}
        return {key: pixels // (k + 1) for key, pixels in made.items()}

    fields = {
        "title": "fc-densenet on noise",
        "task": "seg",
        "metric": "miou",
        "rows": [Row(f"{k}.png", {"miou": 0.5 + k / 10}, pictures=lambda k=k: pictures(k)) for k in range(count)],
        "summary": {"miou": 0.55, "ece": 0.02},
        "conditions": {"protocol": "dataset-iou"},
        "classes": ("sky", "road", "<b>pole</b>"),
        "palette": ((128, 128, 128), (128, 64, 128), (192, 192, 128)),
        "matrix": np.array([[90, 10, 0], [5, 45, 0], [0, 0, 0]]),
        "per_class": {"iou": [0.857, 0.75, None], "dice": [0.923, 0.857, float("nan")]},
        "curves": {"calibration": [(0.5, 0.4), (0.9, 0.85)], "risk-coverage": [(0.0, 0.0), (1.0, 0.1)]},
    }
    return Evaluation(**{**fields, **changes})

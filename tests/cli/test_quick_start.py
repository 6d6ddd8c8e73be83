"""The quick start as a person types it: three commands, from a folder of pictures to results, in a minute."""

from __future__ import annotations

import shlex
import subprocess
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest

from densekit.image import Picture, read_image, read_mask, write_image, write_mask
from densekit.metrics import psnr
from densekit.resize import imresize
from tools.make_samples import disc, to_bytes

pytestmark = pytest.mark.slow
SECONDS = 60
COMMAND = Path(sysconfig.get_path("scripts"), "densekit")


def draw_cells(seed: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture (size, size, 3) uint8 of cells on a ground that brightens to one side, and its ids."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5
    angle = rng.uniform(0, 2 * np.pi)
    picture = 60 + 40 * (np.cos(angle) * x + np.sin(angle) * y) / size
    ids = np.zeros((size, size), np.uint8)
    for _ in range(24):
        radii = tuple(rng.uniform(8, 18, 2))
        shape = disc(x, y, tuple(rng.uniform(0, size, 2)), radii, rng.uniform(0, np.pi))
        picture += shape * rng.uniform(25, 60) * (1 + 0.3 * np.sin(x * 0.8) * np.sin(y * 0.7))
        ids[shape > 0.5] = 1
    return to_bytes(picture[..., None] + rng.normal(0, 8, (size, size, 3))), ids


def type_in(line: str) -> list[str]:
    """Runs a command line where it is; returns the lines of stderr."""
    words = shlex.split(line)
    assert words[0] == "densekit"
    done = subprocess.run([COMMAND, *words[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def iou(pairs) -> float:
    both = either = 0
    for prediction, truth in pairs:
        both += np.count_nonzero((prediction == 1) & (truth == 1))
        either += np.count_nonzero((prediction == 1) | (truth == 1))
    return both / either


def by_threshold(pixels: np.ndarray) -> np.ndarray:
    """Returns what Otsu's threshold makes of a picture, the best that no training gives."""
    import cv2

    return cv2.threshold(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), 0, 1, cv2.THRESH_OTSU)[1]


def test_a_folder_of_cells_has_overlays_within_a_minute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cells/images").mkdir(parents=True)
    Path("cells/masks").mkdir()
    for seed in range(8):
        pixels, ids = draw_cells(seed)
        write_image(Path(f"cells/images/{seed}.png"), Picture(pixels))
        write_mask(Path(f"cells/masks/{seed}.png"), ids)

    began = time.monotonic()
    type_in("densekit seg init cells/ -o cells.yaml --minutes 0.4 --device cpu")
    type_in("densekit seg train cells.yaml --device cpu")
    type_in("densekit seg predict cells/images -m runs/cells/best.safetensors --overlay -o overlays/ --device cpu")
    passed = time.monotonic() - began

    names = [f"{seed}" for seed in range(8)]
    assert {path.name for path in Path("overlays").glob("*_overlay.png")} == {f"{name}_overlay.png" for name in names}
    truths = [read_mask(Path(f"cells/masks/{name}.png")) for name in names]
    found = iou(zip([read_mask(Path(f"overlays/{name}_mask.png")) for name in names], truths, strict=True))
    pictures = [read_image(Path(f"cells/images/{name}.png")).pixels for name in names]
    threshold = iou(zip(map(by_threshold, pictures), truths, strict=True))
    assert found > 0.7, f"IoU {found:.3f}, after {passed:.0f} s"
    assert found > threshold + 0.1, f"IoU {found:.3f}, by threshold {threshold:.3f}"
    assert passed <= SECONDS


def test_a_folder_of_photographs_beats_bicubic_on_another(tmp_path, monkeypatch):
    data = pytest.importorskip("skimage").data
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("astronaut", "coffee", "rocket", "camera"):
        write_image(Path(f"photos/{name}.png"), Picture(np.atleast_3d(getattr(data, name)())))
    hr = data.chelsea()[:200, :300]
    write_image(Path("small.png"), Picture(imresize(hr, 1 / 2, mode="benchmark")))

    type_in("densekit sr init photos/ --scale 2 --minutes 1 --device cpu")
    type_in("densekit sr train photos.yaml --device cpu")
    type_in("densekit sr predict small.png -m runs/photos/best.safetensors -o large.png --device cpu")

    result = read_image(Path("large.png")).pixels
    bicubic = imresize(read_image(Path("small.png")).pixels, 2, mode="benchmark")
    gain = psnr(result, hr, protocol="rdn-y", scale=2) - psnr(bicubic, hr, protocol="rdn-y", scale=2)
    assert gain > 0.5

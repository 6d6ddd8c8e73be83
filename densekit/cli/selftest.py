"""What is inside the package, tried: configs, seals of the weights, and a prediction with each model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from densekit.cli.findings import FAIL, OK, Finding
from densekit.cli.process import describe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AGAIN = "pip install --force-reinstall densekit"
HEIGHT, WIDTH = 48, 64  # of the picture that is predicted
FAR = 16  # levels of 255 by which a super-resolution may differ from the bicubic enlargement in the mean


def configs() -> Iterator[Finding]:
    """Yields whether the shipped configs are there and valid."""
    from densekit.config import list_configs, load_config

    names = list_configs()
    for name in names:
        load_config(name)
    if names:
        yield Finding("configs", OK, f"{len(names)} shipped ones are valid")
    else:
        yield Finding("configs", FAIL, "none in the package", AGAIN)


def seals() -> Iterator[Finding]:
    """Yields whether the embedded weights are those that were shipped."""
    from densekit.cards import card_from, read_bytes, split_header, verify_seal
    from densekit.pretrained import WEIGHTS, trained_names

    names = trained_names()
    if not names:
        yield Finding("weights", FAIL, "no embedded models in the package", AGAIN)
    for name in names:
        try:
            data = read_bytes(WEIGHTS / f"{name}.safetensors")
            start, description = split_header(data, name)
            sha256 = verify_seal(data, start, name)
            card_from(description, name)
        except Exception as error:
            yield Finding("weights", FAIL, describe(error), AGAIN)
        else:
            yield Finding("weights", OK, f"{name}, sha256 {sha256[:8]}.. as sealed")


def predictions() -> Iterator[Finding]:
    """Yields whether each embedded model makes of a small picture what it should, on the processor."""
    from densekit.pretrained import trained_names

    for name in trained_names():
        try:
            fault, told = _predicted(name)
        except Exception as error:
            fault, told = describe(error), ""
        yield Finding("prediction", FAIL if fault else OK, f"{name}: {fault or told}", AGAIN if fault else "")


def _predicted(name: str) -> tuple[str, str]:
    """Returns what is wrong with a model's prediction, empty if nothing is, and what came out."""
    import numpy as np

    from densekit.predict import Upscaler, load
    from densekit.resize import imresize

    picture = _picture()
    model = load(name, device="cpu", precision="fp32")
    result = model.predict(picture)
    if not isinstance(model, Upscaler):
        count = len(model.classes)
        is_right = result.shape == picture.shape[:2] and result.max() < count
        return (
            "" if is_right else f"{result.shape} with classes to {result.max()}",
            f"{WIDTH}x{HEIGHT}, {count} classes",
        )
    scale = model.scale
    if result.shape != (HEIGHT * scale, WIDTH * scale, 3):
        return f"{picture.shape} became {result.shape}", ""
    off = float(np.abs(result.astype(float) - imresize(picture, scale).astype(float)).mean())
    told = f"{WIDTH}x{HEIGHT} -> {WIDTH * scale}x{HEIGHT * scale}"
    return (f"{off:.0f} of 255 levels from bicubic in the mean" if off > FAR else ""), told


def _picture() -> NDArray[np.uint8]:
    """Returns a smooth picture with edges, (HEIGHT, WIDTH, 3)."""
    import numpy as np

    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = 127 + 60 * np.sin(x / 7) + 40 * np.cos(y / 5) + 20 * ((x // 16 + y // 16) % 2)
    pixels: NDArray[np.uint8] = np.clip(waves[..., None] + (0, 8, -8), 0, 255).astype(np.uint8)
    return pixels

"""F5: mutated image files through one call of the command line. Good ones are done, each bad one is one line."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

COMMAND = Path(sysconfig.get_path("scripts"), "densekit")
MAX_PIXELS = 100_000  # a mutated header may ask for more than the test has time for
SIZE = (24, 16)


def seeds() -> dict[str, bytes]:
    """Returns one good file of each format, by name; the part before the underscore is the suffix."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    rgb = np.stack((x * 10, y * 15, (x + y) * 6), 2).astype(np.uint8) + rng.integers(0, 9, (*x.shape, 3), np.uint8)
    im = Image.fromarray(rgb)

    def encode(image, kind, **options):
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return {
        "png": encode(im, "PNG"),
        "png_pal": encode(im.quantize(16), "PNG"),
        "png_rgba": encode(im.convert("RGBA"), "PNG"),
        "png_16": cv2.imencode(".png", rgb.astype(np.uint16) * 257)[1].tobytes(),
        "jpg": encode(im, "JPEG"),
        "jpg_cmyk": encode(im.convert("CMYK"), "JPEG"),
        "jpg_prog": encode(im, "JPEG", progressive=True),
        "tif": encode(im, "TIFF"),
        "tif_lzw": encode(im, "TIFF", compression="tiff_lzw"),
        "tif_deflate": encode(im, "TIFF", compression="tiff_deflate"),
        "webp": encode(im, "WEBP"),
        "webp_lossless": encode(im, "WEBP", lossless=True),
        "bmp": encode(im, "BMP"),
        "gif": encode(im, "GIF"),
    }


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns a damaged copy: cut short, bytes flipped anywhere or in the first 64, a run removed or inserted."""
    values = bytearray(data)
    at, length = int(rng.integers(len(values))), int(rng.integers(1, 65))
    match int(rng.integers(5)):
        case 0:
            return bytes(values[:at])
        case 1:
            for place in rng.integers(0, len(values), rng.integers(1, 17)):
                values[place] ^= int(rng.integers(1, 256))
        case 2:
            for place in rng.integers(0, 64, rng.integers(1, 9)):
                values[place] = int(rng.integers(256))
        case 3:
            del values[at : at + length]
        case 4:
            values[at:at] = rng.bytes(length)
    return bytes(values)


def upscale(folder: Path, weights: Path, out: Path) -> tuple[int, list[str], list[str], int]:
    """Runs the command on every file of a folder: code, lines on stdout and stderr, peak of resident bytes."""
    args = ["sr", "predict", folder / "*", "-m", weights, "-o", out, "--first-frame", "--max-pixels", str(MAX_PIXELS)]
    with Path(f"{out}.out").open("w+") as stdout, Path(f"{out}.err").open("w+") as stderr:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([COMMAND, *args, "--device", "cpu"], stdout=stdout, stderr=stderr, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # a signal is negative
        for stream in (stdout, stderr):
            stream.seek(0)
        return process.returncode, stdout.read().splitlines(), stderr.read().splitlines(), usage.ru_maxrss * 1024


def check(folder: Path, weights: Path, num_good: int, num_bad: int) -> int:
    """Asserts what F5 promises and returns the peak of resident bytes."""
    files, rng = folder / "in", np.random.default_rng(num_bad)
    files.mkdir()
    originals = list(seeds().items())
    for index in range(num_good + num_bad):
        name, data = originals[index % len(originals)]
        kind = "good" if index < num_good else "bad"
        suffix = name.partition("_")[0]
        (files / f"{kind}-{index}.{suffix}").write_bytes(data if kind == "good" else mutate(data, rng))

    code, out, err, peak = upscale(files, weights, folder / "out")
    errors = [line for line in err if line.startswith("error: ")]
    assert code == 1
    assert err[-1] == f"{len(out)} done, {len(errors)} failed"
    assert len(out) + len(errors) == num_good + num_bad
    assert not [line for line in err if "Traceback" in line or "unexpected" in line]

    failed = {line.removeprefix("error: ").partition(": ")[0] for line in errors}
    assert len(failed) == len(errors)
    assert not [path for path in failed if Path(path).name.startswith("good")]
    assert len(failed) > num_bad // 4  # or the mutations do nothing
    done = {Path(path) for path in out}
    assert done == set((folder / "out").iterdir())
    good = [path for path in done if path.name.startswith("good")]
    assert len(good) == num_good
    for path in good:
        with Image.open(path) as im:
            assert im.size == (2 * SIZE[0], 2 * SIZE[1])
    return peak


def test_a_batch_survives_mutated_images(tmp_path, tiny_sr):
    check(tmp_path, tiny_sr, num_good=14, num_bad=140)


@pytest.mark.fault
@pytest.mark.timeout(1800)
def test_a_batch_survives_5000_mutated_images_in_bounded_memory(tmp_path, tiny_sr):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "a.png").write_bytes(seeds()["png"])
    code, _, _, baseline = upscale(alone, tiny_sr, tmp_path / "baseline")
    assert code == 0
    assert check(tmp_path, tiny_sr, num_good=100, num_bad=5000) <= baseline + 2**30

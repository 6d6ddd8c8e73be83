"""Makes the README's pictures of reports. `python -m tools.make_report_picture [REPORT.html]`

Without a report it evaluates rdn-tiny-x4 on scikit-image's photographs, which are free of copyright, for pictures of a
report, light and dark; and trains a x2 network of that kind on T91 for two minutes, for one of a run's report. It needs
data/t91/images, and a Chromium or Chrome on the PATH, or its path in $DENSEKIT_CHROMIUM.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from densekit.image import Picture, read_image, write_image
from tools.browser import Browser, find_browser
from tools.demo_inputs import photographs

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
# those in the wheel that are in colours and in the public domain, by their docstrings in skimage.data
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
WIDTH, HEIGHT = 1180, 1330  # of the window, in CSS pixels
RUN_HEIGHT = 950  # to the end of the first two curves
MAX_BYTES = {"report.webp": 150_000, "report_dark.webp": 150_000, "training_report.webp": 60_000}
RUN = (
    "train.initial_weights=null", "optim.learning_rate=1e-3", "train.total_steps=400", "train.crop_size=24",
    "train.log_every=1", "train.eval_every=20",
)  # fmt: skip


def write_photographs(folder: Path) -> None:
    """Writes the photographs as PNG."""
    (folder / "photographs").mkdir()
    for name in PHOTOGRAPHS:
        pixels = read_image(photographs() / name).pixels
        write_image((folder / "photographs" / name).with_suffix(".png"), Picture(pixels))


def write_run(folder: Path) -> Path:
    """Returns the report of a short training, evaluated on the photographs in `folder`."""
    from densekit.config import load_config
    from densekit.tasks import create_task
    from densekit.train import train

    config = load_config("sr/rdn_tiny_x2", [*RUN, f"data.val={folder / 'photographs'}"])
    train(create_task(config), config, folder / "rdn_tiny_x2")
    return folder / "rdn_tiny_x2" / "report.html"


def write_sample(folder: Path) -> Path:
    """Returns the report of rdn-tiny-x4 on the photographs in `folder`."""
    from densekit import load
    from densekit.evaluate import evaluate_sr
    from densekit.report import write_report

    evaluation = evaluate_sr(load("rdn-tiny-x4"), folder / "photographs")
    evaluation.title = "rdn-tiny-x4 on four photographs"
    write_report(folder / "report.html", evaluation)
    return folder / "report.html"


def take(browser: Browser, report: Path, picture: Path, *, dark: bool, height: int = HEIGHT) -> None:
    """Writes what the top of a report looks like."""
    browser.open(report.resolve().as_uri(), width=WIDTH, height=height, dark=dark)
    with tempfile.TemporaryDirectory() as folder:
        browser.screenshot(Path(folder, "window.png"))
        with Image.open(Path(folder, "window.png")) as image:
            image.convert("RGB").save(picture, quality=85, method=6)


def main() -> int:
    program = find_browser()
    if program is None:
        print("error: found no Chromium or Chrome; install one, or name it in $DENSEKIT_CHROMIUM", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder, run = Path(place), None
        if len(sys.argv) > 1:
            report = Path(sys.argv[1])
        else:
            write_photographs(folder)
            report, run = write_sample(folder), write_run(folder)
        with Browser(program) as browser:
            take(browser, report, FOLDER / "report.webp", dark=False)
            take(browser, report, FOLDER / "report_dark.webp", dark=True)
            if run:
                take(browser, run, FOLDER / "training_report.webp", dark=False, height=RUN_HEIGHT)
    for name, most in MAX_BYTES.items():
        size = (FOLDER / name).stat().st_size
        print(f"{FOLDER / name}: {size} bytes")
        if size > most:
            print(f"error: {size} bytes; this picture of the README may have {most}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

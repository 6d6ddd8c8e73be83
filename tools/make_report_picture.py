"""Makes the README's pictures of a report, light and dark. `python -m tools.make_report_picture [REPORT.html]`

Without a report it evaluates rdn-tiny-x4 on scikit-image's photographs, which are free of copyright. It needs a
Chromium or Chrome on the PATH, or its path in $DENSEKIT_CHROMIUM.
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
MAX_BYTES = 150_000


def write_sample(folder: Path) -> Path:
    """Returns the report of rdn-tiny-x4 on the photographs; it and they lie in `folder`."""
    from densekit import load
    from densekit.evaluate import evaluate_sr
    from densekit.report import write_report

    (folder / "photographs").mkdir()
    for name in PHOTOGRAPHS:
        pixels = read_image(photographs() / name).pixels
        write_image((folder / "photographs" / name).with_suffix(".png"), Picture(pixels))
    evaluation = evaluate_sr(load("rdn-tiny-x4"), folder / "photographs")
    evaluation.title = "rdn-tiny-x4 on four photographs"
    write_report(folder / "report.html", evaluation)
    return folder / "report.html"


def take(browser: Browser, report: Path, picture: Path, *, dark: bool) -> None:
    """Writes what the top of a report looks like."""
    browser.open(report.resolve().as_uri(), width=WIDTH, height=HEIGHT, dark=dark)
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
    pictures = {FOLDER / "report.webp": False, FOLDER / "report_dark.webp": True}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(sys.argv[1]) if len(sys.argv) > 1 else write_sample(Path(folder))
        with Browser(program) as browser:
            for picture, dark in pictures.items():
                take(browser, report, picture, dark=dark)
    for picture in pictures:
        size = picture.stat().st_size
        print(f"{picture}: {size} bytes")
        if size > MAX_BYTES:
            print(f"error: {size} bytes; a picture of the README may have {MAX_BYTES}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

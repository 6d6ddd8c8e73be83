"""Writes the demo's photographs, those bundled in scikit-image's wheel. `python -m tools.demo_inputs FOLDER`"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from densekit.image import read_image, write_image
from densekit.resize import imresize


def photographs() -> Path:
    """Returns the folder of scikit-image's pictures, without importing scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("error: scikit-image is not installed; run ./tools/demo, which installs it")
    return Path(spec.submodule_search_locations[0]) / "data"


def main() -> None:
    source, folder = photographs(), Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "chelsea.png", folder / "chelsea.png")
    picture = read_image(source / "astronaut.png")
    small = replace(picture, pixels=imresize(picture.pixels, 1 / 4, mode="benchmark"))
    write_image(folder / "astronaut_quarter.png", small)


if __name__ == "__main__":
    main()

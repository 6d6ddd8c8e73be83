"""Makes the README's pictures from the demo's results: ./tools/demo, then `python -m tools.make_pictures`"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
RESULTS, FOLDER = ROOT / "out" / "demo", ROOT / "docs" / "pictures"
PICTURES = {"upscale_x4.webp": "astronaut_quarter_compare.png", "nuclei.webp": "nuclei_overlay.png"}
MAX_TOTAL = 400_000  # bytes; a clone and every reader of the README loads them


def main() -> int:
    missing = [name for name in PICTURES.values() if not (RESULTS / name).is_file()]
    if missing:
        print(f"error: {RESULTS / missing[0]} is missing; run ./tools/demo first", file=sys.stderr)
        return 3
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, result in PICTURES.items():
        with Image.open(RESULTS / result) as image:
            image.save(FOLDER / name, quality=85, method=6)
        print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size} bytes")
    total = sum((FOLDER / name).stat().st_size for name in PICTURES)
    if total > MAX_TOTAL:
        print(f"error: {total} bytes of pictures; at most {MAX_TOTAL} may be committed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Refuses files that do not belong into a commit: large ones and unresolved merges.

python -m tools.check_files FILE...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 500_000
WEIGHTS = Path("densekit/weights")  # their own cap is in tools/pack_weights.py
MARKERS = (b"<" * 7 + b" ", b">" * 7 + b" ")  # as products, or this file would be found


def find_faults(path: Path) -> Iterator[str]:
    """Yields what is wrong with a file, a line each; `path` is relative to the repository."""
    data = path.read_bytes()
    if len(data) > MAX_BYTES and WEIGHTS not in path.parents:
        yield f"{path}: {len(data)} bytes; a file may have {MAX_BYTES}"
    for number, line in enumerate(data.splitlines(), start=1):
        if line.startswith(MARKERS):
            yield f"{path}:{number}: a merge conflict is left unresolved"


def main() -> int:
    faults = [fault for name in sys.argv[1:] if Path(name).is_file() for fault in find_faults(Path(name))]
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

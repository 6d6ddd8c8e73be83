"""The policies by which training memory is spent, and budgets that choose among them."""

from __future__ import annotations

import re

from densekit.errors import ConfigError, suggest

MEMORY_POLICIES = {
    "speed": "keep every activation that autograd asks for; nothing is computed twice",
    "balanced": "keep each map once, and what the 1x1 convolutions make; compute norms and ReLUs again",
    "lean": "keep each map once; compute the 1x1 convolutions again as well",
    "min": "as lean, and of what lies between two blocks keep nothing; compute it again",
}
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def check_policy(memory: str) -> str:
    """Returns `memory` if it names a policy.

    Raises:
        ConfigError: it does not.
    """
    if memory not in MEMORY_POLICIES:
        known = ", ".join(MEMORY_POLICIES)
        raise ConfigError(f"memory={memory!r}: not a memory policy{suggest(memory, MEMORY_POLICIES)} (known: {known})")
    return memory


def budget_of(memory: str | int) -> int | None:
    """Returns the bytes of a budget such as "2GiB" or "800MB", None for a policy.

    Raises:
        ConfigError: neither.
    """
    if isinstance(memory, str) and memory in MEMORY_POLICIES:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b)\s*", str(memory), re.IGNORECASE)
    size = int(float(found[1]) * UNITS[found[2].lower()]) if found else 0
    if not size:
        known = ", ".join(MEMORY_POLICIES)
        near = suggest(str(memory), MEMORY_POLICIES)
        raise ConfigError(
            f"memory={memory!r}: neither a memory policy nor a budget{near} (known: {known}; budgets: 2GiB, 800MB)"
        )
    return size


def show_bytes(size: float) -> str:
    """Returns a number of bytes as people write it: 1.43 GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"

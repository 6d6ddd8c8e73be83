"""The policies by which a dense block spends training memory."""

from __future__ import annotations

from densekit.errors import ConfigError, suggest

MEMORY_POLICIES = {
    "speed": "keep every activation that autograd asks for; nothing is computed twice",
    "balanced": "keep each map once, and what the 1x1 convolutions make; compute norms and ReLUs again",
    "lean": "keep each map once; compute the 1x1 convolutions again as well",
}


def check_memory(memory: str) -> str:
    """Returns `memory` if it names a policy.

    Raises:
        ConfigError: it does not.
    """
    if memory not in MEMORY_POLICIES:
        known = ", ".join(MEMORY_POLICIES)
        raise ConfigError(f"memory={memory!r}: not a memory policy{suggest(memory, MEMORY_POLICIES)} (known: {known})")
    return memory

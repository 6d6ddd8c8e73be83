"""What a check of `densekit doctor` has to say."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = STATES = ("ok", "warn", "fail")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        check: what was looked at.
        state: one of `STATES`.
        found: what there is.
        next: what to do; empty where there is nothing to do.
    """

    check: str
    state: str
    found: str
    next: str = ""

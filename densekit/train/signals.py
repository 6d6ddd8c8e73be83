"""Stopping after the step that is under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """Which signal asked for the end; 0 while none has."""

    signum = 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into a wish in `Stop.signum`; the second acts at once.

    Outside the main thread, where Python does not allow handlers, signals act as they did.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        for known, handler in before.items():
            signal.signal(known, handler)

    is_main = threading.current_thread() is threading.main_thread()
    for known in (signal.SIGINT, signal.SIGTERM) if is_main else ():
        before[known] = signal.signal(known, note)
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)

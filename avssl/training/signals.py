"""Signals end a run at the next step, saved; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from avssl.errors import Exit

WATCHED = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, n))


class StopRequest:
    """While active, `name` is the first watched signal that arrived ("" before)."""

    def __init__(self) -> None:
        self.name = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in WATCHED:
            try:
                self._old[number] = signal.signal(number, self._arrived)
            except ValueError:  # not the main thread: whoever called us from there handles signals
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            sys.exit(Exit.INTERRUPTED)
        self.name = self.name or signal.Signals(number).name

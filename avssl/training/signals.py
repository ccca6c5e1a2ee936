"""Signals end a run at the next step, saved; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from avssl.errors import Exit, Stopped

WATCHED = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, n))


class StopRequest:
    """While active, `name` is the first watched signal that arrived ("" before).

    busy: there is something to finish, and whoever set it looks at `name`; before that a signal raises Stopped at once.
    One inside another passes its signals on.
    """

    def __init__(self) -> None:
        self.name = ""
        self.busy = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in WATCHED:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # started with nohup, or in the background: whoever did that meant it
            try:
                self._old[number] = signal.signal(number, self._arrived)
            except ValueError:  # not the main thread: whoever called us from there handles signals
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def check(self, when: str) -> None:
        """Raise Stopped if a signal arrived."""
        if self.name:
            raise Stopped(f"stopped by {self.name} {when}", fix="the same command with --resume goes on")

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            sys.exit(Exit.INTERRUPTED)
        self.name = self.name or signal.Signals(number).name
        outer = getattr(self._old.get(number), "__self__", None)
        if isinstance(outer, StopRequest):
            outer.name = outer.name or self.name
        if not self.busy:
            self.check("before the first update")

"""What a person sees while a run goes on: a bar on a terminal, plain lines in a pipe. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from avssl.progress import clock


class Progress:
    """Shows updates, loss terms, clips/s, the share of time spent waiting for data, and the time left."""

    def __init__(self, total: int, done: int, show: bool = True) -> None:
        self.total, self.start, self.show = total, done, show
        self.began = time.monotonic()
        self._bar: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[terms]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("updates", total=total, completed=done, terms="")

    def step(self, update: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=update)

    def report(self, record: Mapping[str, Any]) -> None:
        """Show a metrics record."""
        if not self.show:
            return
        text = describe(record)
        if self._bar is not None:
            self._bar.update(self._task, terms=text)
            return
        update = record["update"]
        rate = (update - self.start) / max(1e-9, time.monotonic() - self.began)
        left = clock((self.total - update) / rate) if rate > 0 else "?"
        print(f"update {update}/{self.total}  {text}  left {left}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        if not self.show:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe(record: Mapping[str, Any]) -> str:
    """One line of a metrics record."""
    parts = [f"loss {record['loss']:.4f}"] if record.get("loss") is not None else []
    parts += [
        f"{k} {v:.4f}" for k, v in {**record.get("terms", {}), **record.get("metrics", {})}.items() if v is not None
    ]
    timing = record.get("timing", {})
    if timing:
        parts.append(f"{timing['clips_per_s']:.1f} clips/s, {timing['data_wait']:.0%} waiting for data")
    return "  ".join(parts)

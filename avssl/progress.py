"""How far a long job is. The library says it (`steps`); a command shows it (`shown`): a bar on a terminal, plain lines
in a pipe, always on stderr. In a library nobody listens, and nothing is printed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

Step = Callable[[int], None]  # called with the number done so far
SECONDS = 5.0  # between two lines in a pipe; a job that ends sooner prints none

_show: ContextVar[Callable[[str, int], AbstractContextManager[Step]] | None] = ContextVar("show", default=None)


@contextmanager
def steps(what: str, total: int) -> Iterator[Step]:
    """A job of `total` items, called `what` ("embedding"); a job inside another one is part of it and not shown."""
    show = _show.get()
    if show is None:
        yield lambda done: None
        return
    token = _show.set(None)
    try:
        with show(what, total) as step:
            yield step
    finally:
        _show.reset(token)


def beyond(step: Step, done: int) -> Step:
    """The step of a part that begins when `done` items of the whole are done."""
    return lambda more: step(done + more)


@contextmanager
def shown() -> Iterator[None]:
    """Show the jobs that run inside."""
    token = _show.set(_bar if sys.stderr.isatty() else _lines)
    try:
        yield
    finally:
        _show.reset(token)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Step]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _lines(what: str, total: int) -> Iterator[Step]:
    began = last = time.monotonic()
    first: int | None = None  # a resumed job does not begin at 0, and what is done already says nothing about its rate

    def step(done: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        first = done if first is None else first
        if now - last < SECONDS or done <= first:
            return
        last = now
        rate = (done - first) / (now - began)
        left = clock((total - done) / rate)
        print(f"{what} {done:,}/{total:,}  {rate:.3g}/s  left {left}", file=sys.stderr, flush=True)

    yield step


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    seconds = int(seconds)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"

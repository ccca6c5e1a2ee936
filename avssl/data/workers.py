"""A pool of worker processes that survives its decoders: one that crashes or hangs is replaced and the item it held is blamed.

torch's DataLoader ends the whole run when a worker dies, and cannot say which file did it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from avssl.errors import AvsslError

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")
_CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
POLL = 2.0  # seconds between looks at a parent that may have died
TICK, NAP = 0.5, 2.0  # seconds between signs of our own life, and without one after which we were stopped


@dataclass(frozen=True)
class Blame:
    """An item that must not be tried again: its decoder crashed or hung, or it is known to be bad."""

    item: int
    what: str  # "crashed", "hung" or "bad"
    reason: str


def default_workers() -> int:
    """One per core beside the main process, at most 8; 0 on a single core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores - 1)


class _Naps:
    """When this process did not run: stopped with Ctrl-Z, or in a container that was paused. Its workers were stopped with
    it, and what they held is not to blame for the time."""

    def __init__(self) -> None:
        self.naps: list[tuple[float, float]] = []  # end, seconds
        self.last = time.monotonic()
        self.over = threading.Event()
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while not self.over.wait(TICK):
            now = time.monotonic()
            if now - self.last > NAP:
                self.naps.append((now, now - self.last))
            self.last = now

    def since(self, then: float) -> float:
        """Seconds that were slept through since a time, a nap that ended this moment included."""
        now = time.monotonic() - self.last
        return (now if now > NAP else 0.0) + sum(seconds for end, seconds in list(self.naps) if end > then)


class WorkerPool(Generic[K, R]):
    """Calls `work(keys, blamed, hold)` in `workers` processes (0: here), in order.

    work: takes a list of keys and the items that must not be tried (again); it must call `hold(item)` before it touches
    an item. timeout: seconds one item may take. known: the blames to begin with for a task. The pool must be closed.
    """

    def __init__(
        self,
        work: Callable[[Sequence[K], Sequence[Blame], Callable[[int], None]], R],
        workers: int,
        *,
        timeout: float = 120.0,
        ahead: int = 2,
        known: Callable[[Sequence[K]], Iterable[Blame]] = lambda keys: (),
    ) -> None:
        self.work, self.timeout, self.ahead, self.known = work, timeout, ahead, known
        self._workers = [_Worker(work) for _ in range(workers)]
        self._naps = _Naps() if workers else None

    def map(self, tasks: Iterable[Sequence[K]]) -> Iterator[R]:
        """Results of the tasks, in their order. An exception of `work` is raised at its place."""
        if not self._workers:
            for task in tasks:
                yield self.work(task, tuple(self.known(task)), lambda item: None)
            return
        source = enumerate(tasks)
        done: dict[int, Any] = {}
        expected, exhausted = 0, False
        while True:
            while not exhausted:
                worker = min(self._workers, key=lambda w: len(w.tasks))
                if len(worker.tasks) >= self.ahead or len(done) > self.ahead * len(self._workers):
                    break
                try:
                    number, task = next(source)
                    worker.give(_Task(number, task, list(self.known(task))))
                except StopIteration:
                    exhausted = True
            self._collect(done, block=expected not in done)
            if expected in done:
                result = done.pop(expected)
                expected += 1
                if isinstance(result, BaseException):
                    raise result
                yield result
            elif exhausted and not any(w.tasks for w in self._workers):
                return

    def _collect(self, done: dict[int, Any], block: bool) -> None:
        """Take what has arrived (waiting for something if asked to), and replace workers that died or hang."""
        busy = [w for w in self._workers if w.tasks]
        wait([w.conn for w in busy] + [w.process.sentinel for w in busy], timeout=1.0 if block else 0.0)
        for position, worker in enumerate(self._workers):
            try:
                while worker.tasks and worker.conn.poll():
                    done[worker.tasks[0].number] = pickle.loads(worker.conn.recv_bytes())
                    worker.tasks.popleft()
            except (EOFError, OSError, pickle.UnpicklingError):
                worker.process.join(1.0)  # died, perhaps while sending
            alive = worker.process.is_alive()
            hung = alive and worker.held.value >= 0 and self._held_for(worker) >= self.timeout
            if worker.tasks and (hung or not alive):
                self._replace(position, worker, hung, done)

    def _held_for(self, worker: _Worker) -> float:
        """Seconds that a worker has had its item, less those in which nobody ran."""
        since = worker.since.value
        held = time.monotonic() - since
        return held - self._naps.since(since) if held >= self.timeout and self._naps else held

    def _replace(self, position: int, worker: _Worker, hung: bool, done: dict[int, Any]) -> None:
        """A fresh process takes over the tasks of one that is gone; the item that it held is not tried again."""
        number, held = worker.task.value, worker.held.value
        worker.kill()
        how = _exit_name(worker.process.exitcode)
        fresh = self._workers[position] = _Worker(self.work)
        for task in worker.tasks:
            if task.number == number and held >= 0:
                if how == "SIGKILL" and not hung and held not in task.suspects:
                    task.suspects.add(held)  # the system's out-of-memory killer takes whoever is there: try once more
                else:
                    reason = (
                        f"the decoder did not finish within {self.timeout:g} s"
                        if hung
                        else f"the decoder killed its process ({how})"
                    )
                    task.blamed.append(Blame(held, "hung" if hung else "crashed", reason))
            elif held < 0:
                task.deaths += 1
            if task.deaths > 2:
                done[task.number] = AvsslError(
                    f"data workers keep dying outside of any item ({how})",
                    fix="is there enough memory? --workers 0 shows more",
                )
            else:
                fresh.give(task)

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""
        for worker in self._workers:
            worker.kill()
        self._workers = []
        if self._naps:
            self._naps.over.set()

    def __enter__(self) -> WorkerPool[K, R]:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def each(
    items: Sequence[T],
    work: Callable[[T], R],
    lost: Callable[[T, Blame], R],
    workers: int,
    *,
    chunk: int = 16,
    timeout: float = 120.0,
) -> Iterator[R]:
    """`work(item)` of every item, in order, made by `workers` processes (0: here), `chunk` items at a time.

    An item that crashes its worker, or takes longer than `timeout` seconds, gives `lost(item, blame)` instead.
    """
    chunks = [range(i, min(i + chunk, len(items))) for i in range(0, len(items), chunk)]
    with WorkerPool(_OneByOne(items, work, lost), min(workers, len(chunks)), timeout=timeout) as pool:
        for results in pool.map(chunks):
            yield from results


@dataclass
class _OneByOne(Generic[T, R]):
    items: Sequence[T]
    work: Callable[[T], R]
    lost: Callable[[T, Blame], R]

    def __call__(self, keys: Sequence[int], blamed: Sequence[Blame], hold: Callable[[int], None]) -> list[R]:
        blames = {b.item: b for b in blamed}
        out = []
        for index in keys:
            hold(index)
            item = self.items[index]
            out.append(self.lost(item, blames[index]) if index in blames else self.work(item))
        return out


@dataclass
class _Task(Generic[K]):
    number: int
    keys: Sequence[K]
    blamed: list[Blame] = field(default_factory=list)
    suspects: set[int] = field(default_factory=set)
    deaths: int = 0


class _Worker:
    """One process, the tasks it was given, and what it says it is doing (task number, item that it holds)."""

    def __init__(self, work: Callable) -> None:
        self.conn, child = _CONTEXT.Pipe()
        self.task = _CONTEXT.Value("q", -1, lock=False)
        self.held = _CONTEXT.Value("q", -1, lock=False)
        self.since = _CONTEXT.Value("d", 0.0, lock=False)
        self.tasks: deque[_Task] = deque()
        args = (work, child, self.task, self.held, self.since, os.getpid())
        self.process = _CONTEXT.Process(target=_serve, args=args, daemon=True)
        self.process.start()
        child.close()

    def give(self, task: _Task) -> None:
        self.tasks.append(task)
        with contextlib.suppress(OSError):  # it is dead: the next look finds out
            self.conn.send_bytes(pickle.dumps((task.number, task.keys, task.blamed), protocol=5))

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.conn.close()


def _serve(work: Callable, conn: Connection, task: Any, held: Any, since: Any, parent: int) -> None:
    """The life of a worker: signals are the parent's business, and it does not outlive the parent."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.environ["OMP_NUM_THREADS"] = "1"  # one process, one thread: of a torch that is yet to be loaded ...
    if "torch" in sys.modules:  # ... and of one that came with the fork; work that needs none does not load it
        sys.modules["torch"].set_num_threads(1)
    outbox: queue.SimpleQueue = queue.SimpleQueue()  # a thread sends: a parent that is busy training blocks no decoding
    threading.Thread(target=_send, args=(conn, outbox), daemon=True).start()

    def hold(item: int) -> None:
        since.value = time.monotonic()
        held.value = item

    while True:
        while not conn.poll(POLL):
            if os.getppid() != parent:
                os._exit(0)
        try:
            number, keys, blamed = pickle.loads(conn.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        task.value = number
        try:
            result: Any = work(keys, blamed, hold)
        except Exception as error:
            result = error
        held.value = -1
        try:
            outbox.put(pickle.dumps(result, protocol=5))
        except Exception as error:  # an exception that does not pickle
            outbox.put(pickle.dumps(RuntimeError(f"{type(result).__name__}: {result} ({error})"), protocol=5))


def _send(conn: Connection, outbox: queue.SimpleQueue) -> None:
    try:
        while True:
            conn.send_bytes(outbox.get())
    except OSError:
        os._exit(0)  # the parent is gone


def _exit_name(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit {code}"

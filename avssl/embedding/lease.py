"""Claims on pieces of a shared job: a file that one process creates, keeps alive by touching it, and removes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

STALE = 60.0  # seconds without a heartbeat after which a claim is void (other machines cannot see whether we live)


class Lease:
    """A claim that this process holds; use as a context manager. See `claim`."""

    def __init__(self, path: Path, stale: float) -> None:
        self.path = path
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(stale / 4,), daemon=True)
        self._thread.start()

    def _beat(self, every: float) -> None:
        while not self._end.wait(every):
            try:
                os.utime(self.path)
            except OSError:
                return  # someone took it over: our result is the same as theirs

    def release(self) -> None:
        self._end.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def claim(path: Path, stale: float = STALE) -> Lease | None:
    """The claim on `path`, or None while a live process holds it.

    Two processes may, in a rare race, both take over a dead claim; what they then write must be equal and atomic, as
    the parts of an embedding job are.
    """
    holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        if not is_dead(path, stale):
            return None
        grave = path.with_name(f"{path.name}.{uuid.uuid4().hex}.dead")
        try:
            os.rename(path, grave)
        except FileNotFoundError:
            return None  # released, or taken over by another process: look again
        grave.unlink(missing_ok=True)
        return claim(path, stale)
    with os.fdopen(descriptor, "w") as file:
        file.write(holder)
    return Lease(path, stale)


def is_dead(path: Path, stale: float = STALE) -> bool:
    """Whether the holder of a claim is gone: its process on this host has ended, or its heartbeat has stopped."""
    try:
        age = time.time() - path.stat().st_mtime
        holder = json.loads(path.read_text())
    except FileNotFoundError:
        return False
    except ValueError:
        return age > min(stale, 2.0)  # killed between creating and writing
    if age > stale:
        return True
    return holder.get("host") == socket.gethostname() and not _alive(int(holder.get("pid", 0)))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a zombie has ended, though its number is still taken
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True

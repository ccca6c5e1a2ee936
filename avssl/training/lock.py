"""One directory, one run."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import psutil

from avssl.errors import UsageError


class RunLock:
    """A lock file with host, pid and the process's start time. A second run is refused; a stale lock is taken over.

    The file is not a kernel lock, so that it says who holds it and works on file systems that several machines share.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"

    def __enter__(self) -> RunLock:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": born(os.getpid())}
        own = self.path.with_name(f".{self.path.name}.{owner['host']}.{owner['pid']}.tmp")
        own.write_text(json.dumps(owner), encoding="utf-8")
        try:
            with _alone_in(self.path.parent):  # between judging a lock stale and removing it, nobody else may take it
                if self.path.exists():
                    self._refuse_if_alive()
                    self.path.unlink(missing_ok=True)
                try:
                    os.link(own, self.path)  # appears with its contents, or fails: a half-written lock is never seen
                except PermissionError:  # a file system without hard links
                    os.replace(own, self.path)
        except FileExistsError:
            raise UsageError(
                f"{self.path}: another process is just taking the lock", fix="is the same command running twice?"
            ) from None
        finally:
            own.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)

    def _refuse_if_alive(self) -> None:
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            host, pid, started = str(owner["host"]), int(owner["pid"]), owner["started"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # written by a process that died in the act
        if host != socket.gethostname():
            raise UsageError(
                f"{self.path.parent} is in use by process {pid} on {host}",
                fix=f"if that run is dead, delete {self.path}",
            )
        alive = born(pid)
        if alive and (alive == started or not isinstance(started, str)):  # 0.1 wrote a time, which a clock can change
            raise UsageError(
                f"{self.path.parent} is in use by process {pid} on this machine",
                fix="wait for it, or choose another --out",
            )


def born(pid: int) -> str:
    """When a process began, "" when it has ended; a recycled pid is another process. Where the system tells it, in ticks
    since a boot that has a name: setting the clock makes no dead process of a live one."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # ended, and its parent does not want to know
            return ""
        began = str(process.create_time())
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            began = f"{boot}/{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
        return began
    except (psutil.NoSuchProcess, ProcessLookupError):
        return ""


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

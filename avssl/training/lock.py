"""One directory, one run."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import TracebackType

import psutil

from avssl.errors import UsageError


class RunLock:
    """A lock file with host, pid and the process's start time. A second run is refused; a stale lock is taken over."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"

    def __enter__(self) -> RunLock:
        for _ in range(3):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._refuse_if_alive()
                self.path.unlink(missing_ok=True)
                continue
            with os.fdopen(descriptor, "w") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}, file)
            return self
        raise UsageError(f"{self.path}: another process keeps taking the lock", fix="is the same command running twice?")

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.path.unlink(missing_ok=True)

    def _refuse_if_alive(self) -> None:
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            host, pid, started = str(owner["host"]), int(owner["pid"]), float(owner["started"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # written by a process that died in the act
        if host != socket.gethostname():
            raise UsageError(f"{self.path.parent} is in use by process {pid} on {host}",
                             fix=f"if that run is dead, delete {self.path}")
        try:
            alive = abs(psutil.Process(pid).create_time() - started) < 2.0  # a recycled pid is another process
        except psutil.NoSuchProcess:
            return
        if alive:
            raise UsageError(f"{self.path.parent} is in use by process {pid} on this machine", fix="wait for it, or choose another --out")

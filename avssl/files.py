"""Files that are complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on success it is flushed to disk and takes the name, else it goes.

    Raises OSError that names `path` when the system refuses, whatever a library makes of that.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        refused = os_error(error)
        if refused is None:
            raise
        refused.filename = str(path)
        raise refused from None


@contextmanager
def completing(out: Path) -> Iterator[Path]:
    """A path of the same name to write a file or folder to, which takes its place at the end, or goes away.

    A folder that is there already keeps what else is in it.
    """
    out = out.absolute()
    inside = out.is_dir()  # it may be a mount point, and what is beside it another's
    holder = out / f".{os.getpid()}.tmp" if inside else out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(holder, ignore_errors=True)  # of a process that was killed
    holder.mkdir(parents=True)
    made = holder / out.name
    try:
        yield made
        if made.is_dir() and out.is_dir():
            for path in made.iterdir():
                if path.is_dir() and (out / path.name).is_dir():
                    shutil.rmtree(out / path.name)
                os.replace(path, out / path.name)
        else:
            os.replace(made, out)
        sync(out if inside else out.parent)
    except OSError as error:
        error.filename = str(error.filename).replace(str(made), str(out)) if error.filename else None
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def os_error(error: BaseException) -> OSError | None:
    """The operating system's error in one of a library: safetensors wraps it in words of its own."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"os error (\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names that are no UTF-8


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    write_text(path, as_json(value) + "\n")


def as_json(value: Any) -> str:
    """JSON that any reader takes: half of a surrogate pair (a byte of a file name that is no UTF-8) stays an escape."""
    return json.dumps(finite(value), indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def finite(value: Any) -> Any:
    """Plain data in which NaN and infinities are None: strict JSON has no word for them."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

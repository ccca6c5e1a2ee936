"""Files before a decoder sees them: is it a file at all, and what do its first bytes say it is."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from avssl.data.clip import Source
from avssl.errors import DataError

REASONS = {
    errno.ENOENT: "no such file",
    errno.EACCES: "no permission to read it",
    errno.EISDIR: "is a directory, not a file",
    errno.ENOTDIR: "no such file: a part of the path is no directory",
    errno.ELOOP: "a loop of symbolic links",
    errno.ENAMETOOLONG: "the path is too long for this system",
}


def shown(path: str) -> str:
    """A path as it can be printed anywhere: bytes that are no UTF-8 and control characters become escapes."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # no path at all: half of a surrogate pair, as JSON can spell it
        text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def bad(path: str, reason: str, fix: str = "mend or remove the file") -> DataError:
    """The error of an unusable file, on one line."""
    return DataError(f"{shown(path)}: {' '.join(reason.split())}", fix=fix)


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A read-only descriptor of a regular, non-empty file. Raises DataError; never blocks on a FIFO or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = "a null byte in its name" if "\0" in str(path) else str(error)  # each Python says that one in other words
        raise bad(path, REASONS.get(getattr(error, "errno", 0) or 0, why), "check the path") from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise bad(path, REASONS[errno.EISDIR], "give the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise bad(path, "is no regular file (a pipe, socket or device)", "copy its content to a file")
        if status.st_size == 0:
            raise bad(path, "is empty (0 bytes)")
        yield descriptor
    finally:
        os.close(descriptor)


def head(descriptor: int, count: int = 16) -> bytes:
    """The first bytes of an open file; its position stays."""
    try:
        return os.pread(descriptor, count, 0)
    except OSError:
        return b""


def one_path(source: Source) -> str:
    """The path of a source that must be a single file."""
    if isinstance(source, tuple):
        if len(source) != 1:
            raise DataError(f"{len(source)} files given where one is needed", fix="give one path")
        return source[0]
    return source


def is_image(first: bytes) -> bool:
    """Whether the first bytes are those of a still image. GIF counts as video: it may move."""
    return first.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")) or (
        first[:4] == b"RIFF" and first[8:12] == b"WEBP"
    )

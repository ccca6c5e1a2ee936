"""What was typed wrongly, or what the system refuses, on one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

import typer

from avssl.errors import nearest

# typer brings its own copy of click since 0.29: take the base class of usage errors from wherever it is
CLICK_ERROR: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def one_line(error: Any, app: typer.Typer, arguments: Sequence[str]) -> str:
    """`avssl pretrain: missing argument 'RECIPE' (see avssl pretrain --help)` of one of click's errors."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else _command(app, arguments)
    options = getattr(error, "possibilities", None)
    if options:
        message, hint = error.message, f"{nearest(error.option_name, set(options))} See {command} --help"
    else:
        message, hint = error.format_message(), f"see {command} --help"
    message = " ".join(str(message).split()).rstrip(".")
    return f"{command}: {message[:1].lower()}{message[1:]} ({hint})"


WRITABLE, SPACE = "choose a place that can be written", "free some space, or choose a place on another disk"
REFUSALS = {
    errno.EACCES: WRITABLE,
    errno.EPERM: WRITABLE,
    errno.EROFS: WRITABLE,
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: SPACE,
    errno.EIO: "the disk or the share fails: use another one",
    errno.EMFILE: "raise the limit on open files: ulimit -n 4096",
    errno.ENOENT: "was it removed meanwhile?",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def of_the_system(error: OSError) -> str:
    """`PATH: No space left on device (free some space ...)`; "" for what only a bug of ours can cause."""
    from avssl.data.source import shown

    if error.errno not in REFUSALS or (error.errno == errno.ENOENT and not error.filename):
        return ""
    where = f"{shown(os.fsdecode(error.filename))}: " if error.filename else ""
    return f"{where}{os.strerror(error.errno)} ({REFUSALS[error.errno]})"


def _command(app: typer.Typer, arguments: Sequence[str]) -> str:
    """The command that the words name, for the errors that do not know theirs."""
    words, group = ["avssl"], typer.main.get_command(app)
    for word in arguments:
        found = getattr(group, "commands", {}).get(word)
        if found is not None:
            words.append(word)
            group = found
    return " ".join(words)

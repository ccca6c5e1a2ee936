"""What goes wrong, said once: the message, the remedy and the exit code."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes of every command; documented in the README and stable."""

    OK = 0
    BUG = 1
    USAGE = 2
    DATA = 3
    CHECKPOINT = 4
    GATE = 5
    STOPPED = 75  # by a signal, saved and resumable (EX_TEMPFAIL: a scheduler may requeue)
    INTERRUPTED = 130  # a second Ctrl-C: nothing was saved


class AvsslError(Exception):
    """An error a user can act on. `message` says what and where, `fix` what to do; the CLI prints both on one line."""

    code: Exit = Exit.USAGE

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} ({self.fix})" if self.fix else self.message

    def __reduce__(self) -> tuple:  # keyword-only arguments do not survive the default pickling of exceptions
        return _rebuild, (type(self), self.message, self.fix, self.__dict__)


def _rebuild(cls: type[AvsslError], message: str, fix: str, state: dict) -> AvsslError:
    error = cls.__new__(cls)
    AvsslError.__init__(error, message, fix=fix)
    error.__dict__.update(state)
    return error


class UsageError(AvsslError):
    """A wrong option, recipe key or combination."""

    code = Exit.USAGE


class PluginError(AvsslError):
    """A plugin that cannot be loaded, or entries that contradict each other."""

    code = Exit.USAGE


class DataError(AvsslError):
    """Media, a manifest or a label that cannot be used."""

    code = Exit.DATA


class CheckpointError(AvsslError):
    """A model or checkpoint that is damaged, foreign or of another shape."""

    code = Exit.CHECKPOINT


class GateError(AvsslError):
    """A metric below its `--fail-under`, or above its `--fail-over`."""

    code = Exit.GATE


class Stopped(AvsslError):
    """A signal arrived; the run is saved and can be resumed."""

    code = Exit.STOPPED


def check(ok: bool, message: str, *, fix: str = "", error: type[AvsslError] = UsageError) -> None:
    """Raise `error(message, fix=fix)` unless `ok`."""
    if not ok:
        raise error(message, fix=fix)


NAMES = 10  # that a message lists


def nearest(word: str, known: list[str] | tuple[str, ...] | set[str] | frozenset[str]) -> str:
    """`did you mean 'x'?` for the known word closest to a typo, else the list of what there is."""
    import difflib

    match = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    if match:
        return f"did you mean {match[0]!r}?"
    if not known:
        return "there is none"
    names = sorted(known)
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return f"known: {', '.join(names[:NAMES])}{more}"

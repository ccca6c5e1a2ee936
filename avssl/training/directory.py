"""The run directory before anything is in it. No torch: what is wrong with it is said at once."""

from __future__ import annotations

from pathlib import Path

from avssl.errors import UsageError, check

LEFTOVERS = {"bad_files.csv", "run.lock"}  # of an attempt that ended before anything was decided
FROZEN = {"manifest.parquet", "data.json"}  # both alone: of one that ended before its first step


def check_directory(out: Path, resume: bool) -> None:
    """Refuse a directory that holds something, unless its run is resumed."""
    fresh = not out.exists() or (out.is_dir() and {p.name for p in out.iterdir()} - LEFTOVERS in (set(), FROZEN))
    check(resume or fresh, f"--out {out} exists already",
          fix="add --resume to go on with that run, or choose another directory")  # fmt: skip


def make_directory(out: Path, resume: bool) -> None:
    """Make it where it may be made."""
    check_directory(out, resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}", fix="choose a directory that can be written") from None

"""Items that could not be used: each is listed with its reason, and there is a limit to how many a run tolerates."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from avssl.data.source import shown
from avssl.errors import DataError

HEADER = ("id", "path", "what", "reason")


class BadItem(NamedTuple):
    """what: "bad" (unreadable), "missing" (lacks a modality), "crashed" or "hung" (the decoder did)."""

    id: str
    path: str
    what: str
    reason: str

    @property
    def line(self) -> str:
        """`path: reason`, the path once: most reasons begin with it."""
        path = shown(self.path)
        return self.reason if self.reason.startswith(f"{path}: ") else f"{path}: {self.reason}"


@dataclass
class BadFiles:
    """The list of a run or job, written to `path` as it grows (None: kept in memory).

    share, of: `add` raises DataError when more than this share of so many items are bad (None: it never does); "missing"
    ones do not count.
    """

    path: Path | None = None
    share: float | None = None
    of: int = 0
    items: dict[tuple[str, str], BadItem] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_id: dict[str, BadItem] = {}
        if self.path is not None and self.path.exists():
            text = self.path.read_bytes()
            if not text.endswith(b"\n"):  # killed while writing: a half line must not swallow the next one
                os.truncate(self.path, text.rfind(b"\n") + 1)
            with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                for row in list(csv.reader(file))[1:]:
                    if len(row) == len(HEADER):
                        self._keep(BadItem(*row))

    def _keep(self, item: BadItem) -> None:
        self.items[item.id, item.what] = self.by_id[item.id] = item

    def add(self, items: Iterable[BadItem]) -> list[BadItem]:
        """Record items not seen before and return those. Raises DataError when the budget is exceeded."""
        fresh = list({(i.id, i.what): i for i in items if (i.id, i.what) not in self.items}.values())
        for item in fresh:
            self._keep(item)
        if fresh and self.path is not None:
            self._append(fresh)
        if fresh and self.share is not None:
            self._check(self.share)
        return fresh

    def _check(self, share: float) -> None:
        counted = [i for i in self.items.values() if i.what != "missing"]
        allowed = math.ceil(share * self.of)
        if len(counted) <= allowed:
            return
        last = counted[-1].line
        raise DataError(
            f"{len(counted)} of {self.of} items are bad, data.max_bad = {share:g} allows {allowed}; the last: {last}",
            fix=f"they are listed in {self.path}; mend them or raise data.max_bad",
        )

    def _append(self, fresh: list[BadItem]) -> None:
        assert self.path is not None
        new = not self.path.exists() or self.path.stat().st_size == 0
        with self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(HEADER)
            writer.writerows([_writable(value) for value in item] for item in fresh)
            file.flush()
            os.fsync(file.fileno())

    def __len__(self) -> int:
        return len(self.items)


def _writable(text: str) -> str:
    """A text as it is, or with escapes where it is neither Unicode nor the bytes of a file name."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text

"""Results on stdout, as a table for people or JSON for programs; everything else goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One JSON document on stdout; numbers that are not finite become null."""
    from avssl.files import as_json

    print(as_json(value))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """A table on stdout: boxed on a terminal, aligned plain text in a pipe."""
    from rich.console import Console
    from rich.table import Table

    if sys.stdout.isatty():
        table = Table(title=title or None, header_style="bold", title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*[str(v) for v in row])
        Console().print(table)
        return
    widths = [max([len(c), *(len(str(r[i])) for r in rows)]) for i, c in enumerate(columns)]
    if title:
        print(title)
    for line in ([*columns], *rows):
        print("  ".join(str(v).ljust(w) for v, w in zip(line, widths, strict=True)).rstrip())


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr)

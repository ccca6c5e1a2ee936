"""HTML as nested calls: everything that is no `Markup` is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

VOID = frozenset({"img", "br", "hr", "input", "meta"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """Escaped text; Markup passes through, lists are joined, None is nothing."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("")
    if isinstance(value, (list, tuple)):
        return Markup("".join(text(v) for v in value))
    return Markup(html.escape(str(value)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """`tag("div", child, class_="x", data_run=1)`; attributes that are None or False are left out."""
    parts = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"')
    opening = f"<{name}{''.join(parts)}>"
    return Markup(opening if name in VOID else f"{opening}{text(children)}</{name}>")


def table(columns: Sequence[Any], rows: Iterable[Sequence[Any]], numbers: bool = False, class_: str = "") -> Markup:
    """A table that scrolls sideways by itself on a phone. numbers: all columns but the first are right-aligned."""
    head = tag("thead", tag("tr", [tag("th", c, scope="col") for c in columns])) if any(columns) else None
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", c) for c in row[1:]]) for row in rows]
    return tag(
        "div",
        tag("table", head, tag("tbody", body)),
        class_=" ".join(["scroll", "numbers" * numbers, class_]).strip(),
        tabindex="0",
    )


def number(value: Any, digits: int = 4) -> str:
    """A number as a person reads it: 0.1234, 1.2e-05, 12,345; a dash for nothing."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) >= 100):
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"

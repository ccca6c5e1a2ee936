"""Counts in sentences: `1 item`, `2 items`, `12,000 classes`."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun. plural: where it is not the noun with an s ("classes")."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def none_of(number: int, noun: str, plural: str = "") -> str:
    """`none of the 3 items`, `no item` where there is only one."""
    return f"no {noun}" if number == 1 else f"none of the {counted(number, noun, plural)}"

"""From a path to rows: a registered layout, a folder of media, or a table (CSV, TSV, JSONL, Parquet, plain text)."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from avssl.data.clip import Row
from avssl.data.folder import read_folder
from avssl.data.source import shown
from avssl.data.table import SUFFIXES, read_table, read_text, write_rows
from avssl.errors import DataError
from avssl.words import none_of

log = logging.getLogger(__name__)


def read_rows(path: str | os.PathLike[str], *, modalities: Collection[str] | None = None) -> list[Row]:
    """The rows of a data set, in a stable order, with unique ids and absolute paths. Nothing is decoded.

    path: something a registered layout recognises (ESC-50, AudioSet segments, VGGSound ...); a folder, read
    through the manifest.csv, .jsonl or .parquet at its top when there is one (`avssl.data.folder` says how otherwise);
    a manifest (`avssl.data.table`); a .txt file, one item for each paragraph; or one media file.
    modalities: keep only these parts; rows that have none of them are left out.
    Raises DataError, naming file and line, when the path or the table cannot be read, or nothing is left.
    """
    name = os.fspath(path)
    rows = _read(name)
    if modalities is not None:
        wanted = frozenset(modalities)
        kept = [replace(r, parts=p) for r in rows if (p := {m: s for m, s in r.parts.items() if m in wanted})]
        if rows and not kept:
            has = sorted({m for r in rows for m in r.parts})
            raise DataError(
                f"{shown(name)}: {none_of(len(rows), 'item')} has {' or '.join(sorted(wanted))}",
                fix=f"they have {', '.join(has)}",
            )
        rows = kept
    if not rows:
        raise DataError(
            f"{shown(name)}: holds nothing that avssl can read", fix="give media files or a manifest of them"
        )
    _unique(name, rows)
    return rows


def check_exists(path: str | os.PathLike[str]) -> None:
    """Raise DataError when there is nothing of that name: neither a path nor something that a layout recognises."""
    name = os.fspath(path)
    if not _exists(name) and _layout(name) is None:
        raise DataError(f"{shown(name)}: no such file or folder", fix="check the path")


def _exists(name: str) -> bool:
    try:
        return os.path.exists(name)
    except ValueError:
        return False


def _layout(name: str) -> Any:
    """The entry of the first layout that recognises a name."""
    from avssl.entries import resolve
    from avssl.registry import registry

    for entry in registry().all("layout"):
        try:
            if resolve(entry.detect)(name):
                return entry
        except Exception as error:  # one broken plugin must not keep the others from reading
            log.warning("layout %r of %s is passed over: %s", entry.name, entry.origin, error)
    return None


def _read(name: str) -> list[Row]:
    from avssl.entries import resolve

    layout = _layout(name)
    if layout is not None:
        return resolve(layout.read)(name)
    if not _exists(name):
        raise DataError(f"{shown(name)}: no such file or folder", fix="check the path")
    if os.path.isdir(name):
        inside = next((p for s in SUFFIXES if (p := os.path.join(name, "manifest" + s)) and os.path.isfile(p)), None)
        return read_table(inside) if inside else read_folder(name)
    suffix = Path(name).suffix.lower()
    if suffix in SUFFIXES:
        return read_table(name)
    if suffix == ".txt":
        return read_text(name)
    return read_folder(name)


def _unique(name: str, rows: list[Row]) -> None:
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if row.id in seen:
            raise DataError(
                f"{shown(name)}: id {row.id!r} of item {number} is also that of item {seen[row.id]}",
                fix="make the ids unique, or leave the column out",
            )
        seen[row.id] = number


__all__ = ["check_exists", "read_rows", "write_rows"]

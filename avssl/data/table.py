"""Manifests as tables. Columns, all optional but one that names media or text:

- id (or video_id, clip_id, key): unique; else the path as written, or the row's number for text;
- a modality's columns, e.g. audio, vision, image, text, caption: its file (relative to the manifest), or the text;
  path, file, filename, video: a file that gives every modality its suffix allows; a folder stands for the frames in it;
- labels, label, category, class, target: class names, several separated by `;` or `|`, or a JSON list. Of several such
  columns the first that is not all numbers;
- split; fold; group, speaker, recording: what must stay in one split; start, end: seconds; duration.
Every other column is kept in `Row.extra`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from avssl.data import kinds
from avssl.data.clip import Row, Source
from avssl.data.source import bad, opened, shown
from avssl.errors import DataError

SUFFIXES = (".csv", ".jsonl", ".parquet", ".tsv")
IDS = ("id", "video_id", "clip_id", "key")
LABELS = ("labels", "label", "category", "class", "class_name", "target")
GROUPS = ("group", "speaker", "recording")
STARTS = ("start", "start_time")
ENDS = ("end", "end_time")
JSON = "json:"  # marks a cell that holds JSON: several files, or text that a table cannot hold as it is
MAX_TABLE = 4 << 30


def read_table(path: str) -> list[Row]:
    """The rows of a manifest. Raises DataError naming the file, the row and the column."""
    path = os.path.abspath(path)
    suffix = Path(path).suffix.lower()
    reader = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[suffix]
    records = list(reader(path))
    if not records:
        raise bad(path, "has no rows", "give a manifest with at least one item")
    columns = list(dict.fromkeys(key for _, record in records for key in record))
    return _rows(path, records, columns)


def _text(path: str) -> str:
    with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        data = file.read(MAX_TABLE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise bad(path, f"line {line} is not UTF-8 (byte {data[error.start]:#04x})", "save the file as UTF-8") from None


def _csv(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a CSV file with a header; the separator is the tab, semicolon or comma of the header."""
    text = _text(path)
    if "\0" in text:
        raise bad(path, "holds NUL characters", "save the file as plain CSV")
    header_line = text.lstrip().split("\n", 1)[0]
    delimiter = max(",\t;", key=header_line.count)
    csv.field_size_limit(1 << 24)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [h.strip() for h in next(reader, [])]
        if len(set(header)) != len(header):
            twice = next(h for h in header if header.count(h) > 1)
            raise bad(path, f"has the column {twice!r} twice", "rename one")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise bad(
                    path,
                    f"line {reader.line_num} has {len(cells)} fields, the header has {len(header)}",
                    "quote fields that contain the separator",
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise bad(path, f"line {reader.line_num}: {error}", "mend the CSV") from None


def _jsonl(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise bad(path, f"line {number} is no JSON: {error}", "write one JSON object a line") from None
        if not isinstance(record, dict):
            raise bad(path, f"line {number} is no JSON object", "write one JSON object a line")
        yield number, record


def _parquet(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path):
        pass
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise bad(path, f"is no readable Parquet file: {error}") from None
    yield from enumerate(table.to_pylist(), start=1)


def read_text(path: str) -> list[Row]:
    """One item for each paragraph (lines up to an empty one) of a text file."""
    text = _text(path)
    paragraphs = [" ".join(p.split()) for p in text.replace("\r\n", "\n").split("\n\n")]
    paragraphs = [p for p in paragraphs if p]
    stem = shown(Path(path).stem)
    width = len(str(len(paragraphs)))
    return [Row(id=f"{stem}/{i:0{width}d}", parts={"text": p}) for i, p in enumerate(paragraphs)]


def _rows(path: str, records: Sequence[tuple[int, Mapping[str, Any]]], columns: Sequence[str]) -> list[Row]:
    specific, generic = _part_columns(columns)
    if not specific and not generic:
        raise bad(
            path,
            f"has no column that names media or text (it has {', '.join(map(repr, columns))})",
            "name one " + ", ".join(m.columns[0] for m in kinds.modalities()) + " or path",
        )
    label = _label_column(records, columns)
    chosen = {
        "id": _first(columns, IDS),
        "labels": label,
        "group": _first(columns, GROUPS),
        "start": _first(columns, STARTS),
        "end": _first(columns, ENDS),
    }
    used = {*specific.values(), *generic, *filter(None, chosen.values()), "split", "fold", "duration", "extra"}
    rows, taken = [], set()
    for line, record in records:
        where = f"line {line}"
        parts, named = _parts(path, where, record, specific, generic)
        if not parts:
            raise bad(path, f"{where} names no media and no text", "fill in a column or remove the line")
        start = _number(path, where, chosen["start"], record)
        end = _number(path, where, chosen["end"], record)
        if end is not None and end <= (start or 0.0):
            raise bad(path, f"{where}: the window {start or 0.0:g}-{end:g} s is empty", "check start and end")
        identity = _cell(record.get(chosen["id"])) if chosen["id"] else None
        if identity is None:
            identity = named or f"row-{line}"
            if start is not None or end is not None:
                identity += f"#{start or 0.0:g}-{'' if end is None else format(end, 'g')}"
            if identity in taken:
                identity += f"#line-{line}"
        taken.add(identity := str(identity))
        fold = _number(path, where, "fold", record)
        extra = {k: v for k, v in record.items() if k not in used and v is not None and v != ""}
        extra.update(_extra(path, where, record.get("extra")))
        rows.append(
            Row(
                id=identity,
                parts=parts,
                labels=_labels(record.get(label)) if label else (),
                split=str(_cell(record.get("split")) or ""),
                group=str(g) if (g := _group(record, chosen["group"])) else "",
                fold=None if fold is None else int(fold),
                start=start,
                end=end,
                duration=_number(path, where, "duration", record),
                extra=extra,
            )
        )
    return rows


def _first(columns: Sequence[str], names: Sequence[str]) -> str:
    return next((n for n in names if n in columns), "")


def _group(record: Mapping[str, Any], column: str) -> Any:
    return _cell(record.get(column)) if column else None


def _part_columns(columns: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Modality -> its own column, and the columns that hold a media file of any kind."""
    specific = {}
    for modality in kinds.modalities():
        own = [c for c in (*modality.columns, modality.name) if c in columns and c not in kinds.GENERIC]
        if own:
            specific[modality.name] = own[0]
    return specific, [c for c in columns if c in kinds.GENERIC]


def _label_column(records: Sequence[tuple[int, Mapping[str, Any]]], columns: Sequence[str]) -> str:
    present = [c for c in LABELS if c in columns]
    for column in present:
        values = (v for _, r in records if (v := r.get(column)) not in (None, ""))
        if not all(isinstance(v, int) or (isinstance(v, str) and v.strip().isdigit()) for v in values):
            return column
    return present[0] if present else ""


def _parts(
    path: str, where: str, record: Mapping[str, Any], specific: Mapping[str, str], generic: Sequence[str]
) -> tuple[dict[str, Source], str]:
    """The parts of a record, and the first file as the manifest writes it."""
    parts: dict[str, Source] = {}
    named = ""
    base = os.path.dirname(path)
    for modality, column in specific.items():
        value = _cell(record.get(column))
        if value is None:
            continue
        if modality in kinds.inline() and isinstance(value, str):
            parts[modality] = value
            continue
        parts[modality] = _source(path, where, column, value, base)
        named = named or _name(value)
    for column in generic:
        value = _cell(record.get(column))
        if value is None:
            continue
        source = _source(path, where, column, value, base)
        names = ["vision"] if isinstance(source, tuple) else kinds.of_file(source)
        if not names:
            raise bad(
                path,
                f"{where}, {column}: {shown(str(value))} has no suffix of a known kind of media",
                "name the column audio or vision",
            )
        named = named or _name(value)
        for modality in names:
            parts.setdefault(modality, source)
    return parts, named


def _name(value: Any) -> str:
    return shown(str(value[0] if isinstance(value, list) else value))


def _source(path: str, where: str, column: str, value: Any, base: str) -> Source:
    """Absolute path(s); a folder stands for the images in it."""
    files = value if isinstance(value, list) else [value]
    if not files or not all(isinstance(f, str) and f and "\0" not in f for f in files):
        raise bad(path, f"{where}, {column}: {value!r} is no path", "give a path or a list of paths")
    full = [os.path.normpath(os.path.join(base, f)) for f in files]
    if isinstance(value, list):
        return tuple(full)
    if not os.path.splitext(full[0])[1] and os.path.isdir(full[0]):
        frames = kinds.frames_in(full[0])
        if not frames:
            raise bad(path, f"{where}, {column}: the folder {shown(value)} holds no images", "check the path")
        return frames
    return full[0]


def _cell(value: Any) -> Any:
    """A cell's value: None when empty, what JSON says after `json:`, else as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        if value.startswith(JSON):
            try:
                return json.loads(value[len(JSON) :])
            except json.JSONDecodeError:
                return value
        return value if value.strip() else None
    return value


def _number(path: str, where: str, column: str, record: Mapping[str, Any]) -> float | None:
    value = _cell(record.get(column)) if column else None
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise bad(path, f"{where}, {column}: {value!r} is no number of at least 0", "mend the cell")
    return number


def _labels(value: Any) -> tuple[str, ...]:
    """Class names of a cell: a list, JSON list, or text separated by `;` or `|`."""
    value = _cell(value)
    if value is None:
        return ()
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(json.JSONDecodeError):
            value = json.loads(value)
    if isinstance(value, (list, tuple)):
        return tuple(str(v) for v in value)
    if isinstance(value, str):
        return tuple(p for part in value.replace("|", ";").split(";") if (p := part.strip()))
    return (str(value),)


def _extra(path: str, where: str, value: Any) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return {"extra": value}
    return dict(value) if isinstance(value, dict) else {"extra": value}


def write_rows(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Write a manifest (.csv, .jsonl, .parquet by suffix), atomically; `read_rows` gives equal rows back.

    Files below the manifest's folder are written relative to it, so that the folder can be moved.
    """
    from avssl.files import replacing

    target = Path(os.path.abspath(path))
    suffix = target.suffix.lower()
    if suffix not in (".csv", ".jsonl", ".parquet"):
        raise DataError(f"{shown(str(target))}: manifests are .csv, .jsonl or .parquet", fix="change the suffix")
    lists = suffix == ".jsonl" or (suffix == ".parquet" and all(_encodable(label) for r in rows for label in r.labels))
    records = [
        _record(row, str(target.parent), typed=suffix != ".csv", raw=suffix == ".jsonl", lists=lists) for row in rows
    ]
    columns = list(dict.fromkeys(k for r in records for k in r))
    with replacing(target) as temporary:
        if suffix == ".jsonl":
            temporary.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        elif suffix == ".csv":
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(records)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({c: [r.get(c) for r in records] for c in columns}), temporary)


def _record(row: Row, base: str, *, typed: bool, raw: bool, lists: bool) -> dict[str, Any]:
    """A row as table cells. typed: the format has numbers; raw: it can hold any string and object; lists: labels may
    be one (a Parquet column cannot mix lists and strings)."""

    def relative(source: Source) -> Any:
        if isinstance(source, tuple):
            return [relative(s) for s in source]
        below = os.path.relpath(source, base)
        return source if below.startswith("..") or os.path.isabs(below) else below

    record: dict[str, Any] = {"id": row.id if raw else _plain(row.id)}
    for modality, source in row.parts.items():
        value = source if modality in kinds.inline() and isinstance(source, str) else relative(source)
        record[modality] = value if raw else _plain(value)
    if row.labels:
        simple = all(
            label
            and label == label.strip()
            and not set(label) & set(";|")
            and _plain(label) == label
            and not label.startswith("[")
            for label in row.labels
        )
        labels = list(row.labels)
        record["labels"] = labels if lists else ";".join(labels) if simple else JSON + json.dumps(labels)
    for name in ("split", "group"):
        if value := getattr(row, name):
            record[name] = value if raw else _plain(value)
    for name in ("fold", "start", "end", "duration"):
        if (number := getattr(row, name)) is not None:
            record[name] = number if typed else repr(number)
    if row.extra:
        record["extra"] = dict(row.extra) if raw else json.dumps(dict(row.extra))
    return record


def _encodable(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" or (c < " " and c not in "\n\t") for c in text)


def _plain(value: Any) -> str:
    """A string that any table holds and `_cell` reads back."""
    if isinstance(value, str) and value.strip() and _encodable(value) and not value.startswith(JSON):
        return value
    return JSON + json.dumps(value)

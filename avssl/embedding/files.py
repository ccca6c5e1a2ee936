"""Embeddings on disk: Parquet, npz or safetensors, with ids and with everything a later query needs to know.

.parquet      columns `id`, `media`, `labels`, and one per stream: a list of D floats, null where an item lacks it (with
              --sequence a list of such lists); the rest is JSON in the schema metadata `avssl`
.npz          arrays `ids`, `media`, `labels`; `STREAM` (N, D) with nan and `STREAM.present` where items lack it (with
              --sequence (sum of T, D) and `STREAM.offsets` (N + 1,)); the rest is JSON in `meta`
.safetensors  the streams as in npz; all else JSON in the metadata `avssl` (one entry: several have no order)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avssl.data.clip import Row
from avssl.errors import DataError, UsageError, check
from avssl.files import replacing

SUFFIXES = (".parquet", ".npz", ".safetensors")
_KEY = b"avssl"
_PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False}  # vectors neither compress nor repeat


@dataclass(frozen=True)
class Part:
    """Some rows of an output, in order, and what could not be read among them."""

    ids: list[str]
    media: list[str]  # JSON: modality -> path(s) or text, and "start"/"end" in seconds
    labels: list[list[str]]
    values: Mapping[str, Any]  # stream -> (N, D), or a list of (T, D)
    present: Mapping[str, np.ndarray]  # stream -> (N,) bool
    bad: Sequence[Sequence[str]] = ()


def media_of(row: Row) -> str:
    """Where a row's parts are, as JSON."""
    window = {k: v for k, v in (("start", row.start), ("end", row.end)) if v is not None}
    return json.dumps({**row.parts, **window}, sort_keys=True)  # ASCII: a path need not be valid Unicode


def check_suffix(path: Path) -> None:
    check(
        path.suffix in SUFFIXES,
        f"{path}: what format is {path.suffix or 'a name without an ending'}?",
        fix=f"end the name with one of {', '.join(SUFFIXES)}",
    )


def write_part(path: Path, part: Part, widths: Mapping[str, int], sequence: bool) -> None:
    """One Parquet file, complete or absent."""
    import pyarrow.parquet as pq

    table = _table(part, widths, sequence).replace_schema_metadata({_KEY: json.dumps({"bad": list(part.bad)}).encode()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, **_PLAIN)


def bad_of(path: Path) -> list[list[str]]:
    """What a part could not read."""
    import pyarrow.parquet as pq

    return json.loads(pq.read_schema(path).metadata[_KEY])["bad"]


def merge(parts: Iterable[Path], out: Path, meta: Mapping[str, Any]) -> int:
    """Join parts, in order, into the output file; returns the number of rows. Parquet is streamed part by part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    widths, sequence = meta["streams"], bool(meta["options"].get("sequence"))
    text = json.dumps(meta, sort_keys=True)
    if out.suffix == ".parquet":
        schema = _schema(widths, sequence).with_metadata({_KEY: text.encode()})
        rows = 0
        with replacing(out) as temporary, pq.ParquetWriter(temporary, schema, **_PLAIN) as writer:
            for path in parts:
                table = pq.read_table(path, schema=schema)
                rows += table.num_rows
                if table.num_rows:
                    writer.write_table(table)
        return rows
    tables = [pq.read_table(path) for path in parts]
    table = pa.concat_tables(tables) if tables else _schema(widths, sequence).empty_table()
    _write_arrays(table, out, widths, sequence, text)
    return table.num_rows


def _write_arrays(table: Any, out: Path, widths: Mapping[str, int], sequence: bool, text: str) -> None:
    ids, media, labels = (table[c].to_pylist() for c in ("id", "media", "labels"))
    arrays: dict[str, Any] = {}
    for stream, width in widths.items():
        values, present = _column(table[stream], width, sequence)
        if sequence:
            arrays[stream] = np.concatenate(values) if values else np.zeros((0, width), np.float32)
            arrays[f"{stream}.offsets"] = np.cumsum([0, *map(len, values)])
        else:
            arrays[stream] = values
        if not present.all():
            arrays[f"{stream}.present"] = present
    with replacing(out) as temporary:
        if out.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    ids=np.array(ids, dtype=str),
                    media=np.array(media, dtype=str),
                    labels=np.array([json.dumps(x) for x in labels], dtype=str),
                    meta=np.array(text),
                    **arrays,
                )
        else:
            from safetensors.numpy import save_file

            rest = {**json.loads(text), "ids": ids, "media": media, "labels": labels}
            save_file(arrays, str(temporary), {"avssl": json.dumps(rest, sort_keys=True)})


@dataclass
class Index:
    """An embedding file in memory."""

    path: Path
    meta: dict[str, Any]
    ids: list[str]
    media: list[dict[str, Any]]
    labels: list[list[str]]
    values: dict[str, Any]  # stream -> (N, D) float32, nan where absent; sequences: list of (T, D)
    present: dict[str, np.ndarray]


def read_meta(path: Path) -> dict[str, Any]:
    """What the file says about itself, without reading its vectors. Raises DataError for a file that is not ours."""
    return _reading(path, _meta)


def read_index(path: Path) -> Index:
    """A whole embedding file. Raises DataError, naming it, when it is missing, damaged or not ours."""
    return _reading(path, _read)


def _reading(path: Path, reader: Any) -> Any:
    check(
        path.is_file(),
        f"{path}: no such embedding file",
        fix="make one: avssl embed --model MODEL PATH --out FILE",
        error=DataError,
    )
    check(
        path.suffix in SUFFIXES,
        f"{path} is no embedding file",
        fix=f"give one of {', '.join(SUFFIXES)}",
        error=DataError,
    )
    try:
        return reader(path)
    except (DataError, UsageError):
        raise
    except Exception as error:  # three libraries, each with exceptions of its own for damaged files
        raise DataError(
            f"{path} is no embedding file of avssl, or damaged: {' '.join(str(error).split())[:120]}",
            fix="make it again with `avssl embed`",
        ) from None


def _meta(path: Path) -> dict[str, Any]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return json.loads((pq.read_schema(path).metadata or {})[_KEY])
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return json.loads(str(file["meta"]))
    from safetensors import safe_open

    with safe_open(str(path), "np") as file:
        return json.loads(file.metadata()["avssl"])


def _read(path: Path) -> Index:
    meta = _meta(path)
    sequence = bool(meta["options"].get("sequence"))
    values: dict[str, Any] = {}
    present: dict[str, np.ndarray] = {}
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path, memory_map=True)
        ids, media, labels = (table[c].to_pylist() for c in ("id", "media", "labels"))
        for stream, width in meta["streams"].items():
            values[stream], present[stream] = _column(table[stream], width, sequence)
        return Index(path, meta, ids, [json.loads(m) for m in media], labels, values, present)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ids, media = arrays["ids"].tolist(), arrays["media"].tolist()
        labels = [json.loads(x) for x in arrays["labels"].tolist()]
    else:
        from safetensors import safe_open

        with safe_open(str(path), "np") as file:
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
        ids, media, labels = (meta.pop(k) for k in ("ids", "media", "labels"))
    for stream in meta["streams"]:
        present[stream] = arrays.get(f"{stream}.present", np.ones(len(ids), dtype=bool))
        values[stream] = np.split(arrays[stream], arrays[f"{stream}.offsets"][1:-1]) if sequence else arrays[stream]
    return Index(path, meta, ids, [json.loads(m) for m in media], labels, values, present)


def _schema(widths: Mapping[str, int], sequence: bool) -> Any:
    import pyarrow as pa

    def column(width: int) -> Any:
        vector = pa.list_(pa.field("element", pa.float32(), nullable=False), width)
        return pa.list_(pa.field("element", vector, nullable=False)) if sequence else vector

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("media", pa.string(), nullable=False),
            pa.field("labels", pa.list_(pa.string()), nullable=False),
            *(pa.field(stream, column(width)) for stream, width in widths.items()),
        ]
    )


def _table(part: Part, widths: Mapping[str, int], sequence: bool) -> Any:
    import pyarrow as pa

    schema = _schema(widths, sequence)
    columns = [
        pa.array(part.ids, pa.string()),
        pa.array(part.media, pa.string()),
        pa.array(part.labels, pa.list_(pa.string())),
    ]
    for stream in widths:
        kind = schema.field(stream).type
        if sequence:
            lists = [
                None if not there else list(tokens)
                for tokens, there in zip(part.values[stream], part.present[stream], strict=True)
            ]
            columns.append(pa.array(lists, kind))
            continue
        flat = np.ascontiguousarray(part.values[stream], dtype=np.float32).reshape(-1)
        missing = ~part.present[stream]
        columns.append(
            pa.FixedSizeListArray.from_arrays(
                pa.array(flat, pa.float32()), type=kind, mask=pa.array(missing) if missing.any() else None
            )
        )
    return pa.Table.from_arrays(columns, schema=schema)


def _column(column: Any, width: int, sequence: bool) -> tuple[Any, np.ndarray]:
    """(values, present) of a Parquet column."""
    array = column.combine_chunks()
    present = np.array(array.is_valid().to_numpy(zero_copy_only=False))
    if sequence:
        out = []
        for value in array:
            flat = value.values
            out.append(
                np.zeros((0, width), np.float32)
                if flat is None or not len(flat)
                else flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            )
        return out, present
    values = np.full((len(array), width), np.nan, np.float32)
    # `flatten` leaves out the vectors of null rows
    values[present] = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return values, present

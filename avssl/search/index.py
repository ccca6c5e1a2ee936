"""Nearest clips to an id, a file or a text, across modalities. Exact by default; torch loads only when a query must be
embedded.

A large index gets a search cache beside it (`.NAME.search/`, may be deleted): the vectors as plain arrays that are
mapped into memory, so that the second search of 100,000 clips starts at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avssl.embedding.files import read_index, read_meta
from avssl.errors import CheckpointError, DataError, UsageError, check, nearest
from avssl.words import counted

Engine = Literal["exact", "faiss", "usearch"]
CACHE_FROM = 10_000  # clips from which a search cache is worth its disk space
_ROWS = 1 << 15  # vectors converted at a time


@dataclass(frozen=True)
class Hit:
    """One answer, best first."""

    rank: int
    id: str
    similarity: float  # cosine
    labels: list[str]
    media: dict[str, Any]  # modality -> path(s) or text, "start"/"end"


@dataclass(frozen=True)
class Answer:
    """The hits of one direction, `stream` of the query against `among` of the index."""

    query: str
    kind: str  # "id", "file" or "text"
    stream: str
    among: str
    hits: list[Hit]
    media: dict[str, Any]  # of the query

    def plain(self) -> dict[str, Any]:
        """JSON-able, for `--json`."""
        return asdict(self)


class SearchIndex:
    """An embedding file, ready to be searched. Raises DataError when it is missing, damaged or holds sequences."""

    def __init__(
        self,
        path: Path,
        meta: dict[str, Any],
        ids: Sequence[str],
        media: Sequence[str],
        labels: Sequence[Any],
        vectors: dict[str, np.ndarray],
        scales: dict[str, np.ndarray],
        cache: Path | None = None,
    ) -> None:
        self.path, self.meta, self.ids, self._media, self._labels = path, meta, ids, media, labels
        self.vectors = vectors  # stream -> (N, D) float32, zeros where absent; perhaps mapped from disk
        self.scales = scales  # stream -> (N,) float32, 1 / length, 0 where absent
        self.cache = cache  # the search cache, if there is one of this very content

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def streams(self) -> list[str]:
        """Streams of which the index holds at least one vector."""
        return [stream for stream in self.vectors if (self.scales[stream] > 0).any()]

    def media(self, row: int) -> dict[str, Any]:
        """Modality -> path(s) or text of a clip, and its window."""
        return json.loads(self._media[row])

    def labels(self, row: int) -> list[str]:
        """Class names of a clip."""
        return list(self._labels[row])

    def row(self, id: str) -> int | None:
        """The position of an id; None when the index does not have it."""
        try:
            return self.ids.index(id)
        except ValueError:
            return None

    def vector(self, row: int, stream: str) -> np.ndarray | None:
        """(D,) or None when this clip does not have the stream."""
        return np.array(self.vectors[stream][row]) if self.scales[stream][row] > 0 else None

    def nearest(
        self, query: np.ndarray, stream: str, top: int, leave_out: int | None = None, engine: Engine = "exact"
    ) -> list[tuple[int, float]]:
        """(row, cosine) of the `top` nearest, best first, the earlier row first among equals. query: (D,), finite."""
        width = self.vectors[stream].shape[1]
        check(
            query.shape == (width,),
            f"the query is {query.size} wide, {stream!r} in the index {width}",
            fix="compare streams that share a space",
        )
        norm = float(np.linalg.norm(query.astype(np.float64)))
        check(
            norm > 0 and np.isfinite(norm),
            "the query's embedding is zero or not finite",
            fix="try another query",
            error=DataError,
        )
        unit = (query / norm).astype(np.float32)
        if engine != "exact":
            from avssl.search.engines import approximate

            found = approximate(self, stream, unit, top + (leave_out is not None), engine)
            return [(i, s) for i, s in found if i != leave_out][:top]
        similarity = (self.vectors[stream] @ unit) * self.scales[stream]
        similarity[self.scales[stream] == 0] = -np.inf
        if leave_out is not None:
            similarity[leave_out] = -np.inf
        some = min(len(similarity), top)
        edge = np.partition(similarity, -some)[-some] if some else np.inf
        rows = np.flatnonzero(similarity >= edge)  # all that tie with the last one, so that ties keep their order
        rows = rows[np.argsort(-similarity[rows], kind="stable")][:some]
        return [(int(i), float(similarity[i])) for i in rows if similarity[i] > -np.inf]


def open_index(path: str | Path) -> SearchIndex:
    """An index for searching, from its cache when there is one that fits."""
    path = Path(path)
    cache = cache_of(path)
    cached = _from_cache(path, cache)
    if cached is not None:
        return cached
    index = read_index(path)
    check(
        not index.meta["options"].get("sequence"),
        f"{path} holds sequences",
        error=DataError,
        fix="search needs one vector per clip: embed without --sequence",
    )
    vectors, scales = {}, {}
    for stream, values in index.values.items():
        vectors[stream] = np.where(index.present[stream][:, None], values, np.float32(0))
        scales[stream] = _scales(vectors[stream])
    media = [json.dumps(m) for m in index.media]
    found = SearchIndex(path, index.meta, index.ids, media, index.labels, vectors, scales)
    if len(found) >= CACHE_FROM:
        with contextlib.suppress(OSError):  # a read-only or full disk: the search works without
            _write_cache(found, cache)
            found.cache = cache
    return found


def prepare(path: str | Path) -> None:
    """Write the search cache of a large index now, so that the first search is fast too."""
    if read_meta(Path(path)).get("rows", 0) >= CACHE_FROM and not read_meta(Path(path))["options"].get("sequence"):
        open_index(path)


def cache_of(path: Path) -> Path:
    """The folder of an index's search cache."""
    return path.with_name(f".{path.name}.search")


def _scales(vectors: np.ndarray) -> np.ndarray:
    norms = (
        np.concatenate(
            [np.linalg.norm(vectors[i : i + _ROWS].astype(np.float64), axis=1) for i in range(0, len(vectors), _ROWS)]
        )
        if len(vectors)
        else np.zeros(0)
    )
    with np.errstate(divide="ignore"):
        return np.where(norms > 0, 1.0 / norms, 0.0).astype(np.float32)


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _from_cache(path: Path, cache: Path) -> SearchIndex | None:
    try:
        note = json.loads((cache / "index.json").read_text())
        if note["stamp"] != _stamp(path):
            return None
        vectors = {s: np.load(cache / f"{s}.npy", mmap_mode="r") for s in note["meta"]["streams"]}
        scales = {s: np.load(cache / f"{s}.scale.npy") for s in vectors}
        return SearchIndex(path, note["meta"], note["ids"], note["media"], note["labels"], vectors, scales, cache)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing, or half of it deleted: the index itself has everything


def _write_cache(index: SearchIndex, cache: Path) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for stream in index.vectors:
            np.save(temporary / f"{stream}.npy", index.vectors[stream])
            np.save(temporary / f"{stream}.scale.npy", index.scales[stream])
        note = {
            "stamp": _stamp(index.path),
            "meta": index.meta,
            "ids": list(index.ids),
            "media": list(index._media),
            "labels": list(index._labels),
        }
        (temporary / "index.json").write_text(json.dumps(note))
        shutil.rmtree(cache, ignore_errors=True)
        temporary.rename(cache)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def search(
    index: str | Path | SearchIndex,
    query: str,
    *,
    source: str = "",
    among: Sequence[str] = (),
    top: int = 10,
    model: str | Path = "",
    format: str = "",
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    engine: Engine = "exact",
) -> list[Answer]:
    """The clips of an index that are nearest to a query.

    query: an id of the index, a file (sound, picture, video), or a text when the model reads text; in this order.
    source: the query's stream (default: the fused one, else the first that it has); among: streams of the index to
    search (default: the same one, else every one of the same width). model: default, the one that made the index, read
    as it was then; another place, with `format` and `options` if it is a published checkpoint. A query that must be
    embedded is embedded with the options of the index, and in fp32 whatever its precision.
    Raises UsageError when the query is none of these, CheckpointError when the model has changed.
    """
    check(top > 0, f"top is {top}", fix="give at least 1")
    opened = index if isinstance(index, SearchIndex) else open_index(index)
    streams = opened.streams
    for stream in [*among, *([source] if source else [])]:
        known = set(streams) | (set(opened.meta.get("modalities", ())) if stream == source else set())
        check(stream in known, f"the index has no {stream!r} stream", fix=nearest(stream, known))
    row = opened.row(query)
    if row is not None:
        has = [s for s in streams if opened.scales[s][row] > 0]
        check(not source or source in has, f"{query} has no {source}", fix=f"it has {', '.join(has)}", error=DataError)
        check(bool(has), f"{query} has no vector", fix="embed it again", error=DataError)
        stream = source or _first(has)
        vector, kind, media = opened.vector(row, stream), "id", opened.media(row)
    else:
        stream, vector, kind, media = _embedded(opened, query, source, model, format, options, device)
    assert vector is not None
    if not among:
        widths = {s: opened.vectors[s].shape[1] for s in streams}
        among = [stream] if stream in streams else [s for s in streams if widths[s] == vector.size]
        check(
            bool(among),
            f"the {stream} query is {vector.size} wide, nothing in the index is",
            fix="search an index of a model with one space for its modalities",
        )
    answers = []
    for target in among:
        found = opened.nearest(vector, target, top, row, engine)
        hits = [
            Hit(n, opened.ids[i], round(s, 6), opened.labels(i), opened.media(i)) for n, (i, s) in enumerate(found, 1)
        ]
        answers.append(Answer(query, kind, stream, target, hits, media))
    return answers


def _first(streams: Sequence[str]) -> str:
    return "joint" if "joint" in streams else streams[0]


def _embedded(
    index: SearchIndex,
    query: str,
    source: str,
    path: str | Path,
    format: str,
    options: Mapping[str, Any] | None,
    device: str,
) -> tuple[str, np.ndarray, str, dict[str, Any]]:
    """(stream, vector, kind, media) of a query that the index does not hold, by the index's model and options."""
    reads = index.meta.get("modalities", [])
    is_file = _exists(query)
    if not is_file and "text" not in reads:
        near = nearest(query, set(index.ids)) if len(index) <= 2000 else "give an id of the index or the path of a file"
        raise UsageError(f"{query!r} is no id of the index and no file, and its model reads no text", fix=near)
    from avssl.embedding.encode import EmbedOptions, embed_inputs
    from avssl.model import open_model
    from avssl.schema import structure

    home = str(path) or index.meta["model"]
    check(
        Path(home).exists(),
        f"the model that made the index is gone: {home}",
        error=CheckpointError,
        fix="name its new place with --model",
    )
    reader = {"format": format, **(options or {})} if format or options else dict(index.meta.get("reader", {}))
    model = open_model(home, device=device, **reader)
    check(
        model.digest == index.meta["digest"],
        f"{home} is not the model that made the index, or it has changed",
        fix="embed the clips again, or name the right one with --model",
        error=CheckpointError,
    )
    made_with = structure(EmbedOptions, index.meta["options"])
    rest = {k: getattr(made_with, k) for k in ("layer", "pooling", "normalize", "views", "window", "hop")}
    if not is_file:
        vectors = embed_inputs(
            model, [query], modality="text", streams=(source or "text",), **(rest | {"window": None, "hop": None})
        )
        return source or "text", vectors[source or "text"][0], "text", {"text": query}
    from avssl.data.manifest import read_rows
    from avssl.embedding.encode import embed_rows
    from avssl.embedding.rows import looked_up

    rows = read_rows(query)
    check(len(rows) == 1, f"{query} holds {counted(len(rows), 'item')}", fix="give one file")
    (one,) = [looked_up(row, reads) for row in rows]
    can = [s for s in index.meta["streams"] if s in one.parts or (s not in reads and set(reads) <= set(one.parts))]
    can = can or [m for m in reads if m in one.parts]
    check(
        bool(can),
        f"{query} has {', '.join(one.parts)}, the index {', '.join(index.meta['streams'])}",
        fix="give a query of a modality that the model reads",
        error=DataError,
    )
    stream = source or _first(can)
    vectors = embed_rows(model, [one], EmbedOptions(streams=(stream,), **rest), on_bad="fail")
    check(
        len(vectors) == 1 and bool(vectors.present[stream][0]),
        f"{query} has no {stream}",
        error=DataError,
        fix=f"it has {', '.join(one.parts)}",
    )
    return stream, vectors[stream][0], "file", dict(one.parts)


def _exists(query: str) -> bool:
    try:
        return os.path.exists(query)
    except (OSError, ValueError):
        return False

"""Approximate neighbours for indexes of millions, by FAISS or usearch when installed; their graphs are cached."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.errors import UsageError
from avssl.files import replacing

if TYPE_CHECKING:
    from avssl.search.index import SearchIndex

LINKS = 32  # of the HNSW graph, per node
EFFORT = 256  # candidates kept while searching: recall above 0.99 on the usual embeddings


def approximate(index: SearchIndex, stream: str, unit: np.ndarray, top: int, engine: str) -> list[tuple[int, float]]:
    """(row, cosine) of about the `top` nearest to a vector of length one. Raises UsageError without the library."""
    return {"faiss": _faiss, "usearch": _usearch}[engine](index, stream, unit, top)


def _library(module: str, fix: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(f"{module.partition('.')[0]} is not installed", fix=fix) from None


def _units(index: SearchIndex, stream: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows that have the stream, their vectors at length one)."""
    rows = np.flatnonzero(index.scales[stream] > 0)
    return rows, np.ascontiguousarray(index.vectors[stream][rows] * index.scales[stream][rows, None])


def _faiss(index: SearchIndex, stream: str, unit: np.ndarray, top: int) -> list[tuple[int, float]]:
    faiss = _library("faiss", 'pip install "avssl[faiss]", or leave --engine out')
    file = _graph(index, stream, "faiss")
    rows = np.flatnonzero(index.scales[stream] > 0)
    if file is not None and file.exists():
        graph = faiss.read_index(str(file))
    else:
        rows, units = _units(index, stream)
        graph = faiss.IndexHNSWFlat(units.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.add(units)
        if file is not None:
            with replacing(file) as temporary:
                faiss.write_index(graph, str(temporary))
    graph.hnsw.efSearch = max(EFFORT, top)
    similarity, found = graph.search(unit[None], min(top, len(rows)))
    return [(int(rows[i]), float(s)) for i, s in zip(found[0], similarity[0], strict=True) if i >= 0]


def _usearch(index: SearchIndex, stream: str, unit: np.ndarray, top: int) -> list[tuple[int, float]]:
    usearch = _library("usearch.index", "pip install usearch, or leave --engine out")
    file = _graph(index, stream, "usearch")
    graph = usearch.Index(ndim=unit.size, metric="ip", connectivity=LINKS, expansion_search=max(EFFORT, top))
    if file is not None and file.exists():
        graph.load(str(file))
    else:
        rows, units = _units(index, stream)
        graph.add(rows, units)
        if file is not None:
            with replacing(file) as temporary:
                graph.save(str(temporary))
    found = graph.search(unit, top)
    return [(int(k), 1.0 - float(d)) for k, d in zip(found.keys, found.distances, strict=True)]


def _graph(index: SearchIndex, stream: str, suffix: str) -> Path | None:
    """Where the graph is kept: in the index's search cache; None without one."""
    return None if index.cache is None else index.cache / f"{stream}.{suffix}"

"""Retrieval between any two modalities, in both directions, at instance and at class level.

For each pair of streams every clip of one is a query and all clips of the other are the gallery. Cosine similarity of
pooled features, or of those of each view (`avssl.evaluation.similarity`); ties as `avssl.evaluation.ranking` reads them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.data.clip import Row
from avssl.embedding.encode import Vectors
from avssl.errors import DataError, UsageError, check
from avssl.evaluation import bootstrap, ranking
from avssl.evaluation.configs import RetrievalConfig
from avssl.evaluation.features import embed_split, protocol
from avssl.evaluation.labels import Splits, evaluation_split
from avssl.evaluation.report import Report
from avssl.evaluation.similarity import Similarity, similarities, stacked

if TYPE_CHECKING:
    from avssl.model import Model


def retrieval(model: Model, splits: Splits, config: RetrievalConfig) -> Report:
    """`retrieval.A->B.LEVEL.r@K`, `.median_rank` and `.mrr` for every direction A->B."""
    split, rows = evaluation_split(splits, config.split, config.limit)
    modalities = sorted(model.backbone.modalities)
    streams = list(config.streams) or modalities
    if len(streams) < 2 and not config.within:
        raise UsageError(
            f"retrieval between modalities needs two, the model has {', '.join(streams)}",
            fix="--set within=true looks for clips of the same class within one",
        )
    if config.compare != "vector":
        config = replace(config, views="all")
    report = Report("retrieval", protocol=protocol(config, split=split, streams=streams, similarity="cosine"))
    rows, vectors = embed_split(model, rows, streams, config, report)
    report.n["items"] = len(rows)
    if config.compare != "vector":
        report.n["views"] = max(len(v) for s in streams for v in vectors[s])
    pairs = list(itertools.permutations(streams, 2)) + ([(s, s) for s in streams] if config.within else [])
    for query, gallery in pairs:
        evaluate_direction(report, query, gallery, rows, vectors, config)
    check(
        bool(report.metrics),
        "nothing could be compared: no clip has two of the modalities, and none has a label",
        fix='give clips with both, or labels for --set levels=["class"]',
        error=DataError,
    )
    return report


def evaluate_direction(
    report: Report, query: str, gallery: str, rows: Sequence[Row], vectors: Vectors, config: RetrievalConfig
) -> None:
    """Add the metrics of one direction to the report."""
    keys = np.array([pair_key(row, config.pair) for row in rows])
    ask, find = _unique(rows, keys, vectors, query), _unique(rows, keys, vectors, gallery)
    if not len(ask) or not len(find):
        return
    q, g = (taken(rows, vectors[s], at, config) for s, at in ((query, ask), (gallery, find)))
    itself = ranking.same(keys[ask], keys[find]) if query == gallery else None
    for level in config.levels:
        if level == "instance" and (query == gallery or not set(keys[ask]) & set(keys[find])):
            continue
        if level == "class" and not any(row.labels for row in rows):
            continue
        relevance = ranking.same(keys[ask], keys[find]) if level == "instance" else by_label(rows, ask, find)
        placed = ranking.rank(q, g, relevance, exclude=itself, tolerance=config.tolerance, compare=config.compare)
        prefix = f"retrieval.{query}->{gallery}.{level}"
        add_placement(report, prefix, placed, config)
        report.n[f"{prefix}.queries"], report.n[f"{prefix}.gallery"] = len(placed), len(find)
        if config.hits:
            report.hits[prefix] = examples(
                rows, ask, find, similarities(q, g, config.compare), relevance, itself, config.hits
            )


def add_placement(report: Report, prefix: str, placed: ranking.Placement, config: RetrievalConfig) -> None:
    """Recalls, median rank and mean reciprocal rank with their intervals and chance."""
    values, intervals, chance = {}, {}, {}
    options: dict[str, Any] = {"resamples": config.bootstrap, "level": config.confidence, "seed": config.seed}
    for k in config.k:
        values[f"r@{k}"] = placed.recall(k, config.ties)
        chance[f"r@{k}"] = placed.chance(k)
        if config.bootstrap:
            hits, weights = placed.found(k, config.ties)
            intervals[f"r@{k}"] = bootstrap.of_mean(hits, weights=weights, **options)
    ranks = placed.ranks(config.ties)
    values["median_rank"], values["mrr"] = placed.median_rank(config.ties), placed.mean_reciprocal_rank(config.ties)
    if config.bootstrap:
        intervals["median_rank"] = bootstrap.of_statistic(lambda i: float(np.median(ranks[i])), len(ranks), **options)
        intervals["mrr"] = bootstrap.of_mean(1.0 / ranks, **options)
    report.add(prefix, values, intervals, chance)


def by_label(rows: Sequence[Row], ask: np.ndarray, find: np.ndarray) -> ranking.Relevance:
    """Relevance of clips that share a label; a clip without labels is relevant to nothing."""
    names = sorted({label for row in rows for label in row.labels})
    number = {name: i for i, name in enumerate(names)}
    if all(len(row.labels) <= 1 for row in rows):
        index = np.array([number[row.labels[0]] if row.labels else -1 for row in rows])
        other = np.where(index < 0, -2, index)  # two clips without a label share none
        return ranking.same(index[ask], other[find])
    hot = np.zeros((len(rows), len(names)), dtype=np.float32)
    for i, row in enumerate(rows):
        hot[i, [number[label] for label in row.labels]] = 1
    return ranking.shared(hot[ask], hot[find])


def pair_key(row: Row, column: str) -> str:
    """What makes two rows one instance: the id, or another column of the manifest."""
    if column == "id":
        return row.id
    value = row.group if column == "group" else row.extra.get(column)
    check(
        value not in (None, ""),
        f"{row.id}: has no {column!r} column",
        fix="--set pair=id, or fill the column",
        error=DataError,
    )
    return str(value)


def taken(rows: Sequence[Row], values: Any, at: np.ndarray, config: RetrievalConfig) -> np.ndarray:
    """(N, D) vectors of some clips, or (N, V, D) of their views."""
    if config.compare == "vector":
        return values[at]
    return stacked([values[i] for i in at], [rows[i].id for i in at])


def examples(
    rows: Sequence[Row],
    ask: np.ndarray,
    find: np.ndarray,
    alike: Similarity,
    relevance: ranking.Relevance,
    exclude: ranking.Relevance | None,
    count: int,
) -> list[dict[str, Any]]:
    """The ten nearest of `count` queries spread over the split: id, similarity, whether right."""
    out = []
    for i in np.unique(np.linspace(0, len(ask) - 1, min(count, len(ask))).round().astype(int)).tolist():
        one = slice(i, i + 1)
        similarity = alike(one)[0]
        if exclude is not None:
            similarity[exclude(one)[0]] = -np.inf
        right = relevance(one)[0]
        nearest = np.argsort(-similarity, kind="stable")[:10].tolist()
        out.append(
            {
                "query": rows[ask[i]].id,
                "hits": [
                    {"id": rows[find[j]].id, "similarity": float(similarity[j]), "right": bool(right[j])}
                    for j in nearest
                    if similarity[j] > -np.inf
                ],
            }
        )
    return out


def _unique(rows: Sequence[Row], keys: np.ndarray, vectors: Vectors, stream: str) -> np.ndarray:
    """Positions of the clips of a stream: those that have it, each source of an instance once (five captions of one
    clip are five texts but one sound)."""
    seen: set[tuple] = set()
    out = []
    for i in np.flatnonzero(vectors.present[stream]).tolist():
        token = (keys[i], rows[i].parts.get(stream, i), rows[i].start, rows[i].end)
        if token not in seen:
            seen.add(token)
            out.append(i)
    return np.array(out, dtype=int)

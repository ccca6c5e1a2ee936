"""Which clips a model takes for neighbours: between any two streams, and inside one."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avssl.data.clip import Row
from avssl.evaluation.ranking import Placement, Relevance, blocks, rank, same, shared, unit

SHOWN = 8  # hits kept for each query
MATRIX = 240  # clips of the similarity matrix, at most


@dataclass(frozen=True)
class Direction:
    """All clips of one stream against all of another (or of itself, without the query), as `avssl evaluate` ranks them."""

    query: str
    gallery: str
    clips: np.ndarray  # (Q,) clip numbers of the queries
    among: np.ndarray  # (G,) clip numbers of the gallery
    hits: np.ndarray  # (Q, K) clip numbers, best first
    scores: np.ndarray  # (Q, K) cosines
    place: np.ndarray  # (Q,) rank of the best right answer, 1 = first; 0 = it has none
    metrics: Mapping[str, float] = field(default_factory=dict)  # "instance.r@1", "class.r@1", ".chance", ...

    @property
    def name(self) -> str:
        return f"{self.query}->{self.gallery}"

    @property
    def crossing(self) -> bool:
        return self.query != self.gallery

    def plain(self) -> dict[str, Any]:
        """For the page; cosines in thousandths."""
        return {
            "from": self.query,
            "to": self.gallery,
            "clips": self.clips.tolist(),
            "among": len(self.among) - (not self.crossing),
            "hits": self.hits.tolist(),
            "scores": (self.scores * 1000).round().astype(int).tolist(),
            "place": [round(float(p), 1) for p in self.place],
        }


def directions(
    vectors: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    rows: Sequence[Row],
    modalities: frozenset[str],
) -> list[Direction]:
    """Every direction that means something for these streams.

    Between two modalities whose streams are equally wide; else, for a model of one modality, inside its stream. A fused
    stream is searched inside itself: its neighbours should share a class.
    """
    own = [s for s in vectors if s in modalities]
    fused = [s for s in vectors if s not in modalities]
    pairs = [(a, b) for a in own for b in own if a != b and vectors[a].shape[1] == vectors[b].shape[1]]
    if not pairs:
        pairs = [(s, s) for s in own]
    pairs += [(s, s) for s in fused]
    found = (_direction(a, b, vectors, present, rows) for a, b in pairs)
    return [d for d in found if d is not None]


def _direction(
    query: str, gallery: str, vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], rows: Sequence[Row]
) -> Direction | None:
    ask, find = (np.flatnonzero(present[stream]) for stream in (query, gallery))
    if len(np.intersect1d(ask, find)) < 3:
        return None
    inside = query == gallery
    q, g = unit(vectors[query][ask]), unit(vectors[gallery][find])
    itself = same(ask, find)
    kept = min(SHOWN, len(find) - inside)
    hits, scores = np.zeros((len(ask), kept), np.int64), np.zeros((len(ask), kept), np.float32)
    for part in blocks(len(q), len(g)):
        similarity = q[part] @ g.T
        if inside:
            similarity[itself(part)] = -np.inf
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :kept]
        hits[part], scores[part] = find[order], np.take_along_axis(similarity, order, 1)
    levels = {} if inside else {"instance": itself}
    labels = label_matrix(rows)
    if labels is not None:
        levels["class"] = shared(labels[ask], labels[find])
    exclude = itself if inside else None
    metrics: dict[str, float] = {}
    place = np.zeros(len(ask))
    for level, relevance in levels.items():
        answered = _answered(relevance, exclude, len(ask), len(find))
        if answered.any():
            placed = rank(q, g, relevance, exclude=exclude)
            metrics |= _numbers(level, placed)
            if level == next(iter(levels)):
                place[answered] = placed.ranks()
    return Direction(query, gallery, ask, find, hits, scores, place, metrics)


def _answered(relevance: Relevance, exclude: Relevance | None, queries: int, gallery: int) -> np.ndarray:
    """(Q,) bool: which queries have a right answer."""
    out = np.zeros(queries, bool)
    for part in blocks(queries, gallery):
        right = relevance(part)
        out[part] = (right if exclude is None else right & ~exclude(part)).any(1)
    return out


def _numbers(level: str, placed: Placement) -> dict[str, float]:
    out = {f"{level}.r@{k}": placed.recall(k) for k in (1, 5, 10)}
    out |= {f"{level}.chance@{k}": placed.chance(k) for k in (1, 5, 10)}
    return out | {f"{level}.median_rank": placed.median_rank(), f"{level}.queries": float(len(placed))}


def label_matrix(rows: Sequence[Row]) -> np.ndarray | None:
    """(N, C) zeros and ones over the labels of these rows; None when fewer than two classes occur."""
    classes = sorted({label for row in rows for label in row.labels})
    if len(classes) < 2:
        return None
    index = {name: i for i, name in enumerate(classes)}
    out = np.zeros((len(rows), len(classes)), np.float32)
    for i, row in enumerate(rows):
        out[i, [index[label] for label in row.labels]] = 1
    return out


def matrix(direction: Direction, vectors: Mapping[str, np.ndarray], rows: Sequence[Row]) -> dict[str, Any]:
    """Cosines between the queries (rows) and gallery (columns) of the clips that are both, sorted by class, for the page.

    "values": base64 of (n, n) uint8 between the percentiles "low" and "high"; at most MATRIX clips, evenly spaced.
    """
    from avssl.data.kinds import natural

    both = np.intersect1d(direction.clips, direction.among)
    key = [(natural(rows[i].labels[0]) if rows[i].labels else [], i) for i in both.tolist()]
    order = [i for _, i in sorted(key)]
    if len(order) > MATRIX:
        order = [order[k * len(order) // MATRIX] for k in range(MATRIX)]
    q, g = (unit(vectors[s][order]) for s in (direction.query, direction.gallery))
    cosines = q @ g.T
    low, high = (
        float(v) for v in np.percentile(cosines, (0.5, 99.5))
    )  # a clip that is like no other must not dim the rest
    levels = (np.clip((cosines - low) / max(high - low, 1e-12), 0, 1) * 255).round().astype(np.uint8)
    names = [rows[i].labels[0] if rows[i].labels else "" for i in order]
    starts = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    groups = [[s, e, names[s]] for s, e in zip(starts, [*starts[1:], len(names)], strict=True)]
    return {
        "from": direction.query,
        "to": direction.gallery,
        "clips": order,
        "low": low,
        "high": high,
        "values": base64.b64encode(levels.tobytes()).decode("ascii"),
        "groups": groups if names[0] or len(groups) > 1 else [],
    }

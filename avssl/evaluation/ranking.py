"""Where the right answers stand in a ranking, ties included.

For each query three numbers say everything: how many candidates are strictly better than its best right one, how many
stand equal with that one (itself included), and how many of those are right. The reading of ties is then a choice:

"expected"  (default) equal candidates in random order: an embedding that maps everything to one point scores chance
"first"     a right answer stands before its equals (counts candidates that are strictly better): optimistic
"last"      after the wrong ones among its equals: pessimistic
"listed"    the official CAV-MAE script: every position of the tie counts as one more query
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from avssl.errors import DataError, check
from avssl.evaluation.similarity import Compare, similarities, unit

Ties = Literal["expected", "first", "last", "listed"]
Relevance = Callable[[slice], np.ndarray]  # queries -> (b, G) bool, True = a right answer
_CHUNK = 1 << 22  # similarities held at a time: 16 MB in float32, so that they stay near the processor


@dataclass(frozen=True)
class Placement:
    """One row per query that has a right answer at all."""

    better: np.ndarray  # (Q,) candidates strictly above the best right one
    tied: np.ndarray  # (Q,) candidates equal to it, itself included
    right: np.ndarray  # (Q,) how many of those are right
    relevant: np.ndarray  # (Q,) right answers in the whole gallery
    gallery: np.ndarray  # (Q,) candidates

    def __len__(self) -> int:
        return len(self.better)

    def found(self, k: int, ties: Ties = "expected") -> tuple[np.ndarray, np.ndarray]:
        """(numerator, denominator) of each query: recall at k is sum over sum."""
        one = np.ones(len(self))
        if ties == "first":
            return (self.better < k).astype(float), one
        if ties == "last":
            return (self.better + self.tied - self.right < k).astype(float), one
        room = np.clip(k - self.better, 0, self.tied)  # how many of the tied candidates the first k hold
        if ties == "listed":
            return room.astype(float), self.tied.astype(float)
        return 1 - _all_wrong(self.tied, self.right, room), one

    def recall(self, k: int, ties: Ties = "expected") -> float:
        """Share of queries with a right answer among the first k."""
        numerator, denominator = self.found(k, ties)
        return float(numerator.sum() / denominator.sum())

    def ranks(self, ties: Ties = "expected") -> np.ndarray:
        """Rank of the best right answer, 1 = first; (Q,), or more for "listed"."""
        if ties == "first":
            return self.better + 1.0
        if ties == "last":
            return self.better + self.tied - self.right + 1.0
        if ties == "listed":
            starts = np.repeat(self.better + 1.0, self.tied)
            firsts = np.repeat(np.cumsum(self.tied) - self.tied, self.tied)
            return starts + np.arange(len(starts)) - firsts
        return self.better + (self.tied + 1) / (self.right + 1)  # mean of the smallest of `right` among `tied` places

    def median_rank(self, ties: Ties = "expected") -> float:
        return float(np.median(self.ranks(ties)))

    def mean_reciprocal_rank(self, ties: Ties = "expected") -> float:
        """Mean of 1 / rank (of the expected rank under "expected")."""
        return float((1.0 / self.ranks(ties)).mean())

    def chance(self, k: int) -> float:
        """Recall at k of a random order."""
        room = np.minimum(k, self.gallery)
        return float((1 - _all_wrong(self.gallery, self.relevant, room)).mean())


def _all_wrong(candidates: np.ndarray, right: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Probability that `drawn` of `candidates`, of which `right` are right, hold no right one (hypergeometric)."""
    out = np.ones(len(candidates))
    wrong = (candidates - right).astype(float)
    for i in range(int(drawn.max(initial=0))):
        active = drawn > i
        out[active] *= np.clip(wrong[active] - i, 0, None) / (candidates[active] - i)
    return out


def place(similarity: np.ndarray, relevant: np.ndarray, tolerance: float = 0.0) -> Placement:
    """Placements from a matrix: similarity (Q, G), relevant (Q, G) bool; equal = within `tolerance`; -inf similarities
    are no candidates. Queries without a right answer are left out."""
    best = np.max(similarity, axis=1, where=relevant, initial=-np.inf, keepdims=True)
    keep = best[:, 0] > -np.inf
    if not keep.all():
        similarity, relevant, best = similarity[keep], relevant[keep], best[keep]
    above = _counts(similarity > best + tolerance)
    reached = similarity >= best - tolerance  # no excluded one: the best is finite
    tied = _counts(reached) - above
    reached &= relevant
    gallery = np.full(len(similarity), similarity.shape[1])
    right = _counts(relevant)
    if similarity.size and similarity.min() == -np.inf:
        out = similarity == -np.inf
        gallery -= _counts(out)
        right -= _counts(out & relevant)
    return Placement(above, tied, _counts(reached), right, gallery)


def _counts(mask: np.ndarray) -> np.ndarray:
    """(rows,) how many are True in each row. Row by row numpy counts five times faster than along an axis."""
    if mask.shape[1] < 256:
        return np.count_nonzero(mask, axis=1)
    return np.fromiter((np.count_nonzero(row) for row in mask), dtype=np.int64, count=len(mask))


def rank(
    queries: np.ndarray,
    gallery: np.ndarray,
    relevance: Relevance,
    *,
    exclude: Relevance | None = None,
    tolerance: float = 1e-6,
    compare: Compare = "vector",
) -> Placement:
    """Placements by cosine similarity, a block of queries at a time: 100,000 x 100,000 needs 50 MB beside the vectors.

    queries (Q, D), gallery (G, D), or (Q, V, D) and (G, V, D) as `compare` wants them: finite; normalised here.
    relevance and exclude give (b, G) bool for a slice of queries; excluded pairs (a clip and itself) are no candidates.
    Cosines within `tolerance` are equal: 1e-6 is the rounding of a float32 dot product, so the copies of one file tie.
    """
    alike = similarities(queries, gallery, compare)
    parts = []
    for rows in blocks(len(queries), len(gallery)):
        similarity = alike(rows)
        if exclude is not None:
            similarity[exclude(rows)] = -np.inf
        parts.append(place(similarity, relevance(rows), tolerance))
    check(
        bool(parts) and any(len(p) for p in parts),
        "no query has a right answer in the gallery",
        fix="retrieval needs pairs (or, at class level, labels) on both sides",
        error=DataError,
    )
    return Placement(
        *(np.concatenate([getattr(p, f) for p in parts]) for f in ("better", "tied", "right", "relevant", "gallery"))
    )


def blocks(queries: int, gallery: int) -> Iterator[slice]:
    """Slices of queries whose similarities fit in memory."""
    step = max(1, _CHUNK // max(gallery, 1))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def same(query_keys: np.ndarray, gallery_keys: np.ndarray) -> Relevance:
    """Relevance of equal keys: ids at instance level, class indices at class level. query_keys (Q,), gallery_keys (G,),
    of any one type."""
    _, numbers = np.unique(np.concatenate([query_keys, gallery_keys]), return_inverse=True)
    numbers = numbers.astype(np.int32)  # strings compare slowly
    q, g = numbers[: len(query_keys)], numbers[len(query_keys) :]
    return lambda rows: q[rows, None] == g[None]


def shared(query_labels: np.ndarray, gallery_labels: np.ndarray) -> Relevance:
    """Relevance of at least one common label. (Q, C), (G, C) zeros and ones."""
    q, g = np.asarray(query_labels, dtype=np.float32), np.asarray(gallery_labels, dtype=np.float32)
    return lambda rows: (q[rows] @ g.T) > 0.5


__all__ = ["Placement", "Relevance", "Ties", "blocks", "place", "rank", "same", "shared", "unit"]

"""How alike two clips are: the cosine of their vectors, or an aggregate over the cosines of their views.

A clip that is seen in V views (the frames of a video, each with its window of sound; windows of a long recording) has V
vectors per stream, and view k of one modality was cut at the same place as view k of another. `Compare` says what
becomes of the V x V cosines of two clips:

"vector"         none are computed: the cosine of the mean vectors
"diagonal_mean"  mean over k of view k with view k (retrieval of CAV-MAE Sync, arXiv:2505.01237)
"diagonal_max"   the largest of these
"mean", "max"    over all V x V pairs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from avssl.errors import DataError, check

Compare = Literal["vector", "diagonal_mean", "diagonal_max", "mean", "max"]
Similarity = Callable[[slice], np.ndarray]  # queries -> (b, G) float32


def similarities(queries: np.ndarray, gallery: np.ndarray, compare: Compare = "vector") -> Similarity:
    """Similarities of slices of queries to the whole gallery.

    queries (Q, D), gallery (G, D), with other comparisons than "vector" (Q, V, D) and (G, V, D): finite; normalised here.
    """
    check(
        queries.shape[1:] == gallery.shape[1:],
        f"queries are {' x '.join(map(str, queries.shape[1:]))} wide, the "
        f"gallery {' x '.join(map(str, gallery.shape[1:]))}",
        fix="compare streams that share a space and have as many views",
    )
    views = 1 if compare == "vector" else queries.shape[1]
    q: np.ndarray = unit(queries.reshape(-1, queries.shape[-1])).reshape(queries.shape)
    g: np.ndarray = unit(gallery.reshape(-1, gallery.shape[-1])).reshape(gallery.shape)
    if compare == "diagonal_mean":  # one product: the views of a clip end to end
        q, g = q.reshape(len(q), -1) / np.float32(views), g.reshape(len(g), -1)
    elif compare == "mean":
        q, g = q.mean(1), g.mean(1)
    elif compare == "diagonal_max":
        return lambda rows: np.maximum.reduce([q[rows, k] @ g[:, k].T for k in range(views)])
    elif compare == "max":
        pairs = [(k, n) for k in range(views) for n in range(views)]
        return lambda rows: _largest(q[rows], g, pairs)
    return lambda rows: q[rows] @ g.T


def _largest(q: np.ndarray, g: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    out = np.full((len(q), len(g)), -np.inf, np.float32)
    for k, n in pairs:
        np.maximum(out, q[:, k] @ g[:, n].T, out=out)
    return out


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, D) float32 rows of length one; a zero row stays zero. Raises DataError, naming the row, when not finite."""
    x = np.asarray(vectors, dtype=np.float64)
    check(x.ndim == 2, f"vectors of shape {x.shape}", fix="give (items, width)")
    if not np.isfinite(x).all():
        raise DataError(
            f"vector {int(np.flatnonzero(~np.isfinite(x).all(1))[0])} is not finite",
            fix="the model gives non-finite numbers: check its weights and its input",
        )
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.where(norm > 0, norm, 1.0)).astype(np.float32)


def stacked(views: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """(N, V, D) of N clips' (V, D) views. A clip of one view (a still) is compared in it with every other's.

    names: of the clips, for the message of the DataError that other differences raise.
    """
    counts = [len(v) for v in views]
    most = max(counts, default=1)
    odd = next((n for n, c in zip(names, counts, strict=True) if c not in (1, most)), None)
    check(
        odd is None,
        f"{odd} is seen in another number of views than other clips (up to {most})",
        fix="--set compare=vector compares the means",
        error=DataError,
    )
    return np.stack([v if len(v) == most else np.repeat(v, most, axis=0) for v in views])

"""The embedding on a sheet of paper."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from avssl.evaluation.ranking import unit


def planes(
    vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], modalities: frozenset[str]
) -> list[dict[str, Any]]:
    """2-D maps for the page: of each stream, and of all modalities that share a width together (do pairs meet?).

    PCA of the vectors scaled to length one; UMAP (cosine, seed 0) beside it where umap-learn is installed.
    """
    own = [s for s in vectors if s in modalities]
    widths = {vectors[s].shape[1] for s in own}
    groups = [[s] for s in vectors if s not in modalities] + [[s] for s in own]
    if len(own) > 1 and len(widths) == 1:
        groups.insert(len(groups) - len(own), own)
    out = []
    for streams in groups:
        clips = [np.flatnonzero(present[s]) for s in streams]
        if sum(map(len, clips)) < 3:
            continue
        points = np.concatenate([unit(vectors[s][c]) for s, c in zip(streams, clips, strict=True)])
        base = {
            "name": " + ".join(streams),
            "streams": streams,
            "clip": np.concatenate(clips).tolist(),
            "stream": np.repeat(np.arange(len(streams)), [len(c) for c in clips]).tolist(),
        }
        for method, at, note in _methods(points):
            out.append(
                {
                    **base,
                    "method": method,
                    "note": note,
                    "x": at[:, 0].round(4).tolist(),
                    "y": at[:, 1].round(4).tolist(),
                }
            )
    return out


def _methods(points: np.ndarray) -> list[tuple[str, np.ndarray, str]]:
    from sklearn.decomposition import PCA

    pca = PCA(2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # points that all coincide have no variance to divide
        at = pca.fit_transform(points)
    share = np.nan_to_num(pca.explained_variance_ratio_)
    found = [("PCA", scaled(at), f"the two axes hold {share[0]:.0%} and {share[1]:.0%} of the variance")]
    try:
        from umap import UMAP
    except ImportError:
        return found
    if len(points) > 4:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            at = UMAP(n_neighbors=min(15, len(points) - 1), metric="cosine", random_state=0, n_jobs=1).fit_transform(
                points
            )
        found.append(("UMAP", scaled(np.asarray(at)), "distances between far points mean little"))
    return found


def scaled(points: np.ndarray) -> np.ndarray:
    """Centred, the longer axis on [-1, 1], proportions kept."""
    middle = (points.max(0) + points.min(0)) / 2
    return (points - middle) / max(float(np.abs(points - middle).max()), 1e-12)

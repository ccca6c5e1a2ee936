"""How well classes are told apart: by the model's head where it has one, else by neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avssl.data.clip import Row
from avssl.evaluation.ranking import unit

NEIGHBOURS = 5
MOST = 60  # classes of a confusion table that can still be read


def by_head(logits: np.ndarray, rows: Sequence[Row], codec: Any) -> dict[str, Any] | None:
    """Metrics of a fine-tuned head over labelled rows; None where its targets are no classes. logits (N, C)."""
    from avssl.evaluation.labels import encode
    from avssl.evaluation.metrics import classification, probabilities

    if codec.kind not in ("index", "multi_hot"):
        return None
    known = set(codec.classes)
    usable = [i for i, r in enumerate(rows) if r.labels and set(r.labels) <= known and np.isfinite(logits[i]).all()]
    if not usable:
        return None
    targets = encode([rows[i] for i in usable], codec).y
    scores = probabilities(logits[usable], multi_label=not codec.exclusive)
    values, per = classification(scores, targets)
    out: dict[str, Any] = {
        "title": "the model's classification head",
        "items": len(usable),
        "metrics": values,
        "names": list(codec.classes),
        "per": {k: _plain(v) for k, v in per.items()},
    }
    if targets.ndim == 1:
        out |= _confusion(targets, scores.argmax(1), len(codec.classes))
    return out


def by_neighbours(
    vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], rows: Sequence[Row], stream: str
) -> dict[str, Any] | None:
    """Leave-one-out vote of the five nearest other clips, for single-label rows with at least two classes."""
    from avssl.data.kinds import natural

    usable = [i for i in np.flatnonzero(present[stream]).tolist() if len(rows[i].labels) == 1]
    names = sorted({rows[i].labels[0] for i in usable}, key=natural)
    if len(names) < 2 or len(usable) <= NEIGHBOURS or len(usable) < 2 * len(names):
        return None
    truth = np.array([names.index(rows[i].labels[0]) for i in usable])
    x = unit(vectors[stream][usable])
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    votes = np.zeros((len(usable), len(names)))
    for k in range(NEIGHBOURS):  # an earlier neighbour decides between equal counts
        votes[np.arange(len(usable)), truth[nearest[:, k]]] += 1 + 1e-3 * (NEIGHBOURS - k)
    guess = votes.argmax(1)
    largest = np.bincount(truth).max() / len(truth)
    return {
        "title": f"a vote of the {NEIGHBOURS} nearest other clips ({stream} vectors)",
        "items": len(usable),
        "names": names,
        "metrics": {"accuracy": float((guess == truth).mean()), "largest class": float(largest)},
        "per": {},
        **_confusion(truth, guess, len(names)),
    }


def _confusion(truth: np.ndarray, guess: np.ndarray, classes: int) -> dict[str, Any]:
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (truth, guess), 1)
    right = np.diag(table).astype(float)
    with np.errstate(invalid="ignore"):
        return {
            "confusion": table.tolist(),
            "recall": _plain(right / table.sum(1)),
            "precision": _plain(right / table.sum(0)),
        }


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if v != v else round(float(v), 4) for v in np.asarray(values, dtype=float)]

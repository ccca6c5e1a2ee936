"""A linear probe: what a logistic regression reads from frozen features. Deterministic."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.errors import DataError, check
from avssl.evaluation import metrics
from avssl.evaluation.configs import ProbeConfig
from avssl.evaluation.features import on_features
from avssl.evaluation.labels import Labels, Splits
from avssl.evaluation.report import Report

if TYPE_CHECKING:
    from avssl.model import Model


SMALL = 1 << 23  # numbers in a feature matrix: 64 MB in float64


def probe(model: Model, splits: Splits, config: ProbeConfig) -> Report:
    """`probe.STREAM.accuracy` and the like, fitted on the training split."""
    return on_features("probe", model, splits, config, fit_probe)


@contextmanager
def _threads(values: int) -> Iterator[None]:
    """One thread for a small feature matrix: its solver makes thousands of tiny products, where waiting for a second
    core costs more than it gives, and many times more when that core is busy."""
    if values > SMALL:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def fit_probe(
    x: np.ndarray, labels: Labels, z: np.ndarray, config: ProbeConfig, groups: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """(scores of z, facts): x (N, D) with labels trains, z (M, D) is scored: (M, C) probabilities, or (M,) numbers."""
    x, z = x.astype(np.float64), z.astype(np.float64)
    if config.standardize:
        mean, scale = x.mean(0), x.std(0)
        scale[scale < 1e-12] = 1.0  # a constant feature says nothing; dividing by its rounding would make it shout
        x, z = (x - mean) / scale, (z - mean) / scale
    facts: dict[str, Any] = {"c": config.c[0]}
    with _threads(x.size):
        if len(config.c) > 1:
            fit, held = inner_split(labels, groups, config.inner, config.seed)
            quality = [
                _quality(_predict(x[fit], labels.y[fit], x[held], labels, c, config)[0], labels.y[held], labels)
                for c in config.c
            ]
            best = int(np.nanargmax(quality)) if np.isfinite(quality).any() else len(config.c) // 2
            facts = {"c": config.c[best], "inner_quality": float(quality[best]), "inner_items": len(held)}
        scores, converged = _predict(x, labels.y, z, labels, facts["c"], config)
    return scores, {**facts, "converged": converged}


def inner_split(labels: Labels, groups: Sequence[str], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(fit, held) row numbers: whole groups apart when rows have groups, else each class in both parts if it can be."""
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

    n = len(labels.y)
    check(n > 1, "one training row is not enough for a probe", fix="give more labelled rows", error=DataError)
    if len(set(filter(None, groups))) > 1:
        names = [group or f"row {i}" for i, group in enumerate(groups)]
        return next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(np.zeros(n), groups=names))
    counts = labels.counts if labels.codec.kind == "index" else np.zeros(1)
    counts = counts[counts > 0]
    if len(counts) and counts.min() > 1 and int(np.ceil(share * n)) >= len(counts) <= n - int(np.ceil(share * n)):
        return next(StratifiedShuffleSplit(1, test_size=share, random_state=seed).split(np.zeros(n), labels.y))
    return next(ShuffleSplit(1, test_size=share, random_state=seed).split(np.zeros(n)))


def _predict(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, labels: Labels, c: float, config: ProbeConfig
) -> tuple[np.ndarray, bool]:
    """(scores of z, whether the solver converged) of one model. Classes that x does not have score 0."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    if labels.numbers:
        return Ridge(alpha=1.0 / c).fit(x, y).predict(z), True

    def logistic(target: np.ndarray) -> Any:
        return LogisticRegression(C=c, max_iter=config.max_iter).fit(x, target)

    out = np.zeros((len(z), len(labels.codec.classes)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        if labels.multi:
            for column in range(y.shape[1]):
                values = set(y[:, column].tolist())
                out[:, column] = logistic(y[:, column]).predict_proba(z)[:, 1] if len(values) > 1 else values.pop()
        elif len(classes := np.unique(y)) == 1:
            out[:, classes[0]] = 1.0
        else:
            out[:, classes] = logistic(y).predict_proba(z)
    return out, not any(issubclass(w.category, ConvergenceWarning) for w in caught)


def _quality(scores: np.ndarray, y: np.ndarray, labels: Labels) -> float:
    if labels.numbers:
        return -float(np.mean((scores - y) ** 2))
    return metrics.macro(metrics.average_precision(scores, y)) if labels.multi else metrics.accuracy(scores, y)

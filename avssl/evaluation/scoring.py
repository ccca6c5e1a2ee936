"""Scores of items to the metrics, intervals, per-class values and confusion of a report."""

from __future__ import annotations

from typing import Any

import numpy as np

from avssl.evaluation import bootstrap, metrics
from avssl.evaluation.configs import EvaluationConfig
from avssl.evaluation.labels import Labels
from avssl.evaluation.report import Report


def score(
    report: Report,
    prefix: str,
    scores: np.ndarray,
    labels: Labels,
    config: EvaluationConfig,
    folds: np.ndarray | None = None,
) -> None:
    """Add everything that is known about these predictions.

    scores: (N, C), probabilities for multi-label targets; (N,) or (N, 1) predictions of numbers. folds: (N,) the fold of
    each item; intervals and chance are then those of the mean over the folds.
    """
    scores = np.ravel(scores) if labels.numbers else scores
    apart = [np.full(len(scores), True)] if folds is None else [folds == fold for fold in np.unique(folds)]
    parts = [(scores[some], labels.y[some]) for some in apart]
    options: dict[str, Any] = {"resamples": config.bootstrap, "level": config.confidence, "seed": config.seed}
    if labels.numbers:
        intervals = bootstrap.of_regression(parts, **options) if config.bootstrap else {}
        report.add(prefix, metrics.regression(scores, labels.y), intervals)
        return
    empty: metrics.Empty = getattr(config, "empty", "skip")
    threshold: float = getattr(config, "threshold", 0.5)
    values, per_class = metrics.classification(scores, labels.y, empty=empty, threshold=threshold)
    intervals = {}
    if config.bootstrap:
        intervals = bootstrap.of_classification(parts, threshold=threshold, empty=empty, **options)
    chances = [metrics.chance(y, scores.shape[1], empty) for _, y in parts]
    report.classes = list(labels.codec.classes)
    report.add(
        prefix,
        values,
        {k: v for k, v in intervals.items() if k in values},
        {k: float(np.mean([c[k] for c in chances])) for k in chances[0] if k in values},
    )
    report.add_classes(prefix, per_class, labels.counts)
    if not labels.multi:
        report.confusion[prefix] = metrics.confusion(scores, labels.y).tolist()

"""Scores of items to the metrics, intervals, per-class values and confusion of a report."""

from __future__ import annotations

import numpy as np

from avssl.evaluation import bootstrap, metrics
from avssl.evaluation.configs import EvaluationConfig
from avssl.evaluation.labels import Labels
from avssl.evaluation.report import Report


def score(
    report: Report, prefix: str, scores: np.ndarray, labels: Labels, config: EvaluationConfig
) -> dict[str, float]:
    """Add everything that is known about these predictions; returns the metrics.

    scores: (N, C), probabilities for multi-label targets; (N,) or (N, 1) predictions of numbers.
    """
    if labels.numbers:
        values = metrics.regression(scores, labels.y)
        report.add(prefix, values, _regression_intervals(scores, labels.y, config))
        return values
    empty: metrics.Empty = getattr(config, "empty", "skip")
    threshold: float = getattr(config, "threshold", 0.5)
    values, per_class = metrics.classification(scores, labels.y, empty=empty, threshold=threshold)
    intervals = {}
    if config.bootstrap:
        intervals = bootstrap.of_classification(
            scores, labels.y, resamples=config.bootstrap, level=config.confidence, seed=config.seed, threshold=threshold
        )
    report.classes = list(labels.codec.classes)
    chance = metrics.chance(labels.y, scores.shape[1])
    report.add(
        prefix,
        values,
        {k: v for k, v in intervals.items() if k in values},
        {k: v for k, v in chance.items() if k in values},
    )
    report.add_classes(prefix, per_class, labels.counts)
    if not labels.multi:
        report.confusion[prefix] = metrics.confusion(scores, labels.y).tolist()
    return values


def _regression_intervals(
    scores: np.ndarray, truth: np.ndarray, config: EvaluationConfig
) -> dict[str, tuple[float, float]]:
    if not config.bootstrap:
        return {}
    p, t = np.ravel(scores), np.ravel(truth)
    rng = np.random.default_rng(config.seed)
    draws = [rng.integers(0, len(p), len(p)) for _ in range(config.bootstrap)]
    values = [metrics.regression(p[d], t[d]) for d in draws if len(set(d.tolist())) > 1]
    return {name: bootstrap.percentiles(np.array([v[name] for v in values]), config.confidence) for name in values[0]}

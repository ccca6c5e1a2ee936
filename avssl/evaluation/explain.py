"""What each metric means and how it was computed, in one sentence each, for `--explain`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from avssl.evaluation.gates import lower_is_better
from avssl.evaluation.report import Report

_TIES = {
    "expected": "candidates with equal similarity count as if in random order",
    "first": "a right answer stands before candidates with equal similarity (optimistic)",
    "last": "a right answer stands after candidates with equal similarity (pessimistic)",
    "listed": "every position of a tie counts as one more query (the reading of a published evaluation script)",
}
_ALIKE = {
    "vector": "cosine similarity",
    "diagonal_mean": "the mean over k of the cosines of view k with view k",
    "diagonal_max": "the largest cosine of view k with view k",
    "mean": "the mean of the cosines of each view with each view",
    "max": "the largest cosine of any view with any view",
}
_METRICS = (
    (r"r@(\d+)$", "share of queries with a right answer among the first {0} by {alike}; {ties}"),
    (r"median_rank$", "median over the queries of the rank of the best right answer; {ties}"),
    (r"mrr$", "mean over the queries of 1 / rank of the best right answer; {ties}"),
    (r"accuracy$", "share of items whose highest score is the right class"),
    (r"top5$", "share of items whose class is among the five highest scores"),
    (r"mcc$", "Matthews correlation of the guessed and the right classes: 1 = all right, 0 = no better than constant"),
    (r"map$", "unweighted mean over the classes of average precision (no interpolation); {empty}"),
    (r"auc$", "unweighted mean over the classes of the area under the ROC curve, ties half; {empty}"),
    (r"d_prime$", "sqrt(2) x the inverse normal distribution function of the mean AUC"),
    (r"f1$", "unweighted mean over the classes of F1 = 2TP / (2TP + FP + FN)"),
    (r"pearson$", "Pearson correlation of predictions and targets"),
    (r"spearman$", "Pearson correlation of the ranks of predictions and targets"),
    (r"mse$", "mean squared error"),
    (r"mae$", "mean absolute error"),
    (r"r2$", "1 - residual variance / variance of the targets"),
    (r"std$", "sample standard deviation over the folds"),
    (r"fold\.[^.]+$", "the value on that fold, fitted on the others"),
)
_LEVELS = {"instance": "right = the same clip", "class": "right = a clip that shares a label"}
_EMPTY = {
    "skip": "classes without positives are left out",
    "zero": "classes without positives count as AP 0 and AUC -1 (official scripts)",
}


def describe(name: str, protocol: dict) -> str:
    """The meaning of one metric; for an unknown one (a plugin's) its name says it all."""
    ties, empty = _TIES[protocol.get("ties", "expected")], _EMPTY[protocol.get("empty", "skip")]
    alike = _ALIKE[protocol.get("compare", "vector")]
    better = ["lower is better"] if lower_is_better(name) else []
    for pattern, text in _METRICS:
        if match := re.search(r"(?:^|\.)" + pattern, name):
            notes = [note for level, note in _LEVELS.items() if f".{level}." in f".{name}."] + better
            return "; ".join([text.format(*match.groups(), ties=ties, empty=empty, alike=alike), *notes])
    return "; ".join(["see the protocol", *better])


def explain(report: Report) -> list[str]:
    """Lines: the protocol, then each metric."""
    lines = [f"task {report.task}; " + ", ".join(f"{k} {v}" for k, v in report.n.items())]
    lines += [f"  {key}: {_shown(value)}" for key, value in report.protocol.items()]
    lines += [f"{name}: {describe(name, report.protocol)}" for name in report.metrics]
    if report.intervals:
        over = "over the items of each fold, of the mean" if "folds" in report.protocol else "over the items"
        lines.append(
            f"intervals: {report.protocol.get('confidence', 0.95):.0%} percentile bootstrap {over}, "
            f"{report.protocol.get('bootstrap')} resamples, seed {report.protocol.get('seed')}"
        )
    if report.chance:
        lines.append("chance: what the best answer without any information would score on these items")
    return lines


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)

"""Metrics of predictions, from scikit-learn; the readings that authors differ in are options, stated by name.

Arrays: scores (N, C) are logits or probabilities, higher = more likely; targets (N,) class indices or (N, C) zeros and
ones; everything is computed in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal

import numpy as np

from avssl.errors import DataError, UsageError, check

Empty = Literal["skip", "zero"]  # a class without positives: left out of means; or AP 0 and AUC -1, and in the means


def one_hot(targets: np.ndarray, classes: int) -> np.ndarray:
    """(N,) class indices -> (N, C) zeros and ones; (N, C) targets pass through, thresholded at 0.5 when soft."""
    targets = np.asarray(targets)
    if targets.ndim == 2:
        return (targets > 0.5).astype(np.int64)
    return (targets[:, None] == np.arange(classes)).astype(np.int64)


def index(targets: np.ndarray) -> np.ndarray:
    """(N, C) one-hot (or soft) targets -> (N,) class indices; indices pass through."""
    targets = np.asarray(targets)
    return targets.argmax(1) if targets.ndim == 2 else targets.astype(np.int64)


def average_precision(scores: np.ndarray, targets: np.ndarray, empty: Empty = "skip") -> np.ndarray:
    """(C,) average precision of each class: sum over thresholds of (recall step) * precision, no interpolation.

    A class without positives is nan ("skip"), or 0 ("zero": what scikit-learn returns since 1.3 and the reading of
    CAV-MAE's and AST's evaluation scripts, which keep it in the mean).
    """
    from sklearn.metrics import average_precision_score

    scores, truth = _pair(scores, targets)
    out = np.full(scores.shape[1], np.nan if empty == "skip" else 0.0)
    for c in np.flatnonzero(truth.any(0)):
        out[c] = average_precision_score(truth[:, c], scores[:, c])
    return out


def roc_auc(scores: np.ndarray, targets: np.ndarray, empty: Empty = "skip") -> np.ndarray:
    """(C,) area under the ROC curve of each class, ties counted half.

    A class without positives or without negatives has none: nan ("skip"), or -1 ("zero": CAV-MAE's script).
    """
    from sklearn.metrics import roc_auc_score

    scores, truth = _pair(scores, targets)
    out = np.full(scores.shape[1], np.nan if empty == "skip" else -1.0)
    for c in np.flatnonzero(truth.any(0) & ~truth.all(0)):
        out[c] = roc_auc_score(truth[:, c], scores[:, c])
    return out


def d_prime(auc: float) -> float:
    """sqrt(2) * Phi^-1(auc): the separation of two unit normals with that AUC. nan outside [0, 1]."""
    from scipy.stats import norm

    return float(np.sqrt(2.0) * norm.ppf(auc)) if 0 <= auc <= 1 else float("nan")


def macro(per_class: np.ndarray) -> float:
    """Unweighted mean over the classes that have a value; nan when none has."""
    values = np.asarray(per_class, dtype=np.float64)
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")


def accuracy(scores: np.ndarray, targets: np.ndarray, k: int = 1) -> float:
    """Share of items whose class is among the k highest scores. A tie goes to the lower class index (numpy's argmax),
    for every k, so that the number never depends on the sorting algorithm."""
    return float(hits(scores, targets, k).mean())


def hits(scores: np.ndarray, targets: np.ndarray, k: int = 1) -> np.ndarray:
    """(N,) bool: whether the right class is among the k highest scores, ties to the lower class index."""
    scores, truth = np.asarray(scores, dtype=np.float64), index(targets)
    own = np.take_along_axis(scores, truth[:, None], 1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < truth[:, None]))
    return before.sum(1) < k


def f1(scores: np.ndarray, targets: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """(C,) F1 of each class: of the argmax for class indices; of `scores > threshold` for multi-label targets.
    A class that is neither there nor predicted is nan."""
    from sklearn.metrics import f1_score

    truth, guess = _decisions(scores, targets, threshold)
    out = np.asarray(f1_score(truth, guess, average=None, zero_division=0.0), dtype=np.float64)
    out[~(truth.any(0) | guess.any(0))] = np.nan
    return out


def confusion(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(C, C) counts: row = true class, column = predicted class."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(index(targets), np.asarray(scores).argmax(1), labels=np.arange(np.shape(scores)[1]))


def matthews(both: np.ndarray, real: np.ndarray, said: np.ndarray) -> np.ndarray:
    """(...) Matthews correlation of several classes (Gorodkin, 2004), 0 where truth or guess has one class only.

    both, real, said: (..., C) items of a class that are recognised, that there are, that are guessed to be of it.
    """
    total, right = real.sum(-1), both.sum(-1)
    spread = (total**2 - (said**2).sum(-1)) * (total**2 - (real**2).sum(-1))
    return (right * total - (real * said).sum(-1)) / np.sqrt(np.where(spread > 0, spread, np.inf))


def classification(
    scores: np.ndarray, targets: np.ndarray, *, empty: Empty = "skip", threshold: float = 0.5
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Every metric of a classifier: ({name: value}, {name: (C,) per class}).

    targets (N,): single label, adds accuracy, Matthews correlation (and top5 beyond five classes); (N, C): multi-label.
    `f1` of multi-label targets reads scores as probabilities.
    """
    targets = np.asarray(targets)
    per = {
        "ap": average_precision(scores, targets, empty),
        "auc": roc_auc(scores, targets, empty),
        "f1": f1(scores, targets, threshold),
    }
    auc = macro(per["auc"])
    values = {"map": macro(per["ap"]), "auc": auc, "d_prime": d_prime(auc), "f1": macro(per["f1"])}
    if targets.ndim == 1:
        table = confusion(scores, targets).astype(np.float64)
        mcc = matthews(table.diagonal(), table.sum(1), table.sum(0))
        single = {"accuracy": accuracy(scores, targets), "mcc": float(mcc)}
        if np.shape(scores)[1] > 5:
            single["top5"] = accuracy(scores, targets, 5)
        values = {**single, **values}
        right = hits(scores, targets)
        counts = np.bincount(targets, minlength=np.shape(scores)[1])
        with np.errstate(invalid="ignore"):
            per["accuracy"] = np.bincount(targets, weights=right, minlength=len(counts)) / counts
    return values, per


def regression(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Mean squared and absolute error, R^2, Pearson and Spearman correlation. predictions, targets: (N,)."""
    from scipy import stats
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    p, t = np.asarray(predictions, dtype=np.float64).ravel(), np.asarray(targets, dtype=np.float64).ravel()
    _finite(p)
    check(
        len(p) == len(t) and len(p) > 1,
        f"{len(p)} predictions for {len(t)} targets",
        fix="give at least two of each",
        error=DataError,
    )
    with warnings.catch_warnings():  # a constant prediction has no correlation: nan says so
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        pearson, spearman = stats.pearsonr(p, t).statistic, stats.spearmanr(p, t).statistic
    return {
        "pearson": float(pearson),
        "spearman": float(spearman),
        "mse": float(mean_squared_error(t, p)),
        "mae": float(mean_absolute_error(t, p)),
        "r2": float(r2_score(t, p)),
    }


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Sigmoid (multi-label) or softmax over the last axis, in float64."""
    x = np.asarray(logits, dtype=np.float64)
    if multi_label:
        from scipy.special import expit

        return expit(x)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def chance(targets: np.ndarray, classes: int, empty: Empty = "skip") -> Mapping[str, float]:
    """What the best answer without any information scores on these items, in the limit of many.

    Accuracy: always the most frequent class; top5: always the five most frequent. mAP: the class frequencies; AUC 1/2.
    F1: a class of frequency p that is guessed at a rate q has 2pq / (p + q) (expected counts). Its mean over the classes
    is largest at q = p where exactly one class is guessed for each item, which gives 1 / classes, and at q = 1 (always
    all of them) where an item may have several. Classes without positives count in mAP and AUC as `empty` says.
    """
    truth = one_hot(targets, classes)
    share = truth.mean(0)[truth.any(0)]  # (classes that occur,)
    counted = len(share) if empty == "skip" else classes
    judged = int((truth.any(0) & ~truth.all(0)).sum())  # classes that have a curve
    auc = 0.5 if empty == "skip" else (0.5 * judged - (classes - judged)) / classes
    out = {"map": float(share.sum() / counted), "auc": auc, "d_prime": d_prime(auc)}
    if np.ndim(targets) == 1:
        best = np.sort(share)[::-1]
        out |= {"accuracy": float(best[0]), "top5": float(best[:5].sum()), "f1": 1.0 / len(share), "mcc": 0.0}
    else:
        out["f1"] = float((2 * share / (1 + share)).mean())
    return out


def _pair(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores, dtype=np.float64)
    check(scores.ndim == 2, f"scores of shape {scores.shape}", fix="give (items, classes)")
    _finite(scores)
    truth = one_hot(targets, scores.shape[1])
    check(
        truth.shape == scores.shape,
        f"targets of shape {np.shape(targets)} for scores of shape {scores.shape}",
        fix="give class indices (N,) or zeros and ones (N, C)",
    )
    check(len(scores) > 0, "no items to evaluate", fix="is the split empty?", error=DataError)
    return scores, truth


def _decisions(scores: np.ndarray, targets: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    scores, truth = _pair(scores, targets)
    if np.ndim(targets) == 1:
        return truth, one_hot(scores.argmax(1), scores.shape[1])
    return truth, (scores > threshold).astype(np.int64)


def _finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))[0]
        raise UsageError(
            f"score at {tuple(int(i) for i in bad)} is {values[tuple(bad)]}",
            fix="the model gives non-finite numbers: check its weights and its input",
        )

"""Confidence intervals by resampling the items (percentile bootstrap), seeded and therefore repeatable."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from avssl.evaluation import metrics

Interval = tuple[float, float]
_CHUNK = 1 << 22  # elements of a working array: 32 MB in float64


def percentiles(values: np.ndarray, level: float) -> Interval:
    """The central `level` of the values, nan left out; values are picked, not interpolated, so that infinities may be
    among them (d-prime of a perfect AUC)."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def centred(values: np.ndarray, estimate: float, level: float, low: float, high: float) -> Interval:
    """`percentiles` of values whose mean is moved to the estimate, within [low, high].

    A resample holds copies of items, and copies of a positive raise average precision: uncorrected, the interval of a
    weak classifier on few items may lie above its own estimate.
    """
    if np.isfinite(estimate) and np.isfinite(mean := np.nanmean(values)):
        values = np.clip(values - mean + estimate, low, high)
    return percentiles(values, level)


def of_mean(
    values: np.ndarray, *, resamples: int, level: float, seed: int, weights: np.ndarray | None = None
) -> Interval:
    """Interval of sum(values) / sum(weights) over resampled items. values, weights: (N,); weights default to 1."""
    values = np.asarray(values, dtype=np.float64)
    over = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    got = [(c @ values) / (c @ over) for c in _batches(len(values), resamples, seed)]
    return percentiles(np.concatenate(got), level)


def of_statistic(
    statistic: Callable[[np.ndarray], float], items: int, *, resamples: int, level: float, seed: int
) -> Interval:
    """Interval of any `statistic(indices)` of resampled items; one call per resample."""
    rng = np.random.default_rng(seed)
    return percentiles(np.array([statistic(rng.integers(0, items, items)) for _ in range(resamples)]), level)


def of_classification(
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    resamples: int,
    level: float,
    seed: int,
    threshold: float = 0.5,
    empty: metrics.Empty = "skip",
) -> dict[str, Interval]:
    """Intervals of the mean over folds of the metrics of `metrics.classification`; items are resampled within their fold.

    folds: (scores (N, C), targets) of each, or the one pair there is. Intervals are centred on the estimate (see
    `centred`).
    """
    rng = np.random.default_rng(seed)
    each = [_resampled(scores, targets, resamples, rng, threshold, empty) for scores, targets in folds]
    out = {}
    for name in each[0]:
        values = np.stack([fold[name] for fold in each])  # (folds, 1 + resamples)
        with np.errstate(invalid="ignore"):  # d-prime of folds that are all right and all wrong
            estimate = values[:, 0].mean()
        limits = {"d_prime": (-np.inf, np.inf), "mcc": (-1.0, 1.0), "auc": (0.0 if empty == "skip" else -1.0, 1.0)}.get(
            name, (0.0, 1.0)
        )
        known = estimate == estimate
        out[name] = centred(_nanmean(values[:, 1:]), estimate, level, *limits) if known else (np.nan, np.nan)
    return out


def of_regression(
    folds: Sequence[tuple[np.ndarray, np.ndarray]], *, resamples: int, level: float, seed: int
) -> dict[str, Interval]:
    """Intervals of the mean over folds of the metrics of `metrics.regression`. folds: (predictions, targets), (N,) both."""
    rng = np.random.default_rng(seed)
    each = []
    for _ in range(resamples):
        draws = [rng.integers(0, len(t), len(t)) for _, t in folds]
        if all(len(set(d.tolist())) > 1 for d in draws):
            each.append([metrics.regression(p[d], t[d]) for (p, t), d in zip(folds, draws, strict=True)])
    names = metrics.regression(*folds[0])
    return {name: percentiles(np.array([np.mean([f[name] for f in one]) for one in each]), level) for name in names}


def _resampled(
    scores: np.ndarray,
    targets: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
    threshold: float,
    empty: metrics.Empty,
) -> dict[str, np.ndarray]:
    """(1 + resamples,) values of each metric: those of the items as they are, then of each resample.

    Curves are sorted once per class and re-weighted for all resamples together: equal to scikit-learn's with
    `sample_weight`, and fast enough for 527 classes. A class that only a resample lacks is left out of its mean; one that
    the items lack is left out of every mean, or in all of them, as `empty` says.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    truth = metrics.one_hot(targets, scores.shape[1])
    made: dict[str, list[np.ndarray]] = {"map": [], "auc": [], "d_prime": [], "f1": []}
    if targets.ndim == 1:
        made |= {"accuracy": [], "mcc": []}
    if targets.ndim == 1 and scores.shape[1] > 5:
        made["top5"] = []
    single = targets.ndim == 1
    guess = metrics.one_hot(scores.argmax(1), scores.shape[1]) if single else (scores > threshold).astype(int)
    batches = itertools.chain([np.ones((1, len(scores)))], _batches(len(scores), resamples, rng))
    for weights in batches:
        curves = [weighted_curves(scores[:, c], truth[:, c], weights) for c in range(scores.shape[1])]
        ap, areas = np.array(curves).transpose(1, 0, 2)  # (C, r) both
        if empty == "zero":
            ap[~truth.any(0)], areas[~truth.any(0) | truth.all(0)] = 0.0, -1.0
        auc = _nanmean(areas)
        made["map"].append(_nanmean(ap))
        made["auc"].append(auc)
        made["d_prime"].append(np.array([metrics.d_prime(a) for a in auc]))
        both, real, said = weights @ (truth * guess), weights @ truth, weights @ guess
        with np.errstate(invalid="ignore"):
            made["f1"].append(_nanmean((2 * both / (real + said)).T))
        if "mcc" in made:
            made["mcc"].append(metrics.matthews(both, real, said))
        for name, k in (("accuracy", 1), ("top5", 5)):
            if name in made:
                made[name].append(weights @ metrics.hits(scores, targets, k) / weights.sum(1))
    return {name: np.concatenate(values) for name, values in made.items()}


def weighted_curves(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AP and AUC (R,), (R,) of one class under R weightings of its items. scores, truth: (N,); weights: (R, N)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last item of each group of ties
    weights = weights[:, order]
    true = np.cumsum(weights * truth[order], 1)[:, ends]  # (R, G) true positives at each threshold
    seen = np.cumsum(weights, 1)[:, ends]
    gained = np.diff(true, axis=1, prepend=0.0)
    false = seen - true
    new_false = np.diff(false, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(seen > 0, true / seen, 0.0)
        ap = (gained * precision).sum(1) / true[:, -1]
        auc = (new_false * (true - gained / 2)).sum(1) / (true[:, -1] * false[:, -1])
    return ap, auc


def _batches(items: int, resamples: int, seed: int | np.random.Generator) -> Iterator[np.ndarray]:
    """Resampling counts, (r, N) at a time; the same numbers whatever the batch size."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(items, 1))
    for start in range(0, resamples, step):
        n = min(step, resamples - start)
        yield rng.multinomial(items, np.full(items, 1.0 / items), size=n).astype(np.float64)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over axis 0 without nan; nan where there is nothing."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)

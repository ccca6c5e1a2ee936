"""Cross-validation over the folds that a data set prescribes (ESC-50 and its kin)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from avssl.data.split import few_rows
from avssl.errors import DataError, check
from avssl.evaluation import metrics
from avssl.evaluation.configs import KfoldConfig
from avssl.evaluation.features import embed_split, matrix, probe_streams, protocol
from avssl.evaluation.knn import neighbours
from avssl.evaluation.labels import Splits, encode, label_codec, labelled, spread_over
from avssl.evaluation.probe import fit_probe
from avssl.evaluation.report import Report
from avssl.evaluation.scoring import score

if TYPE_CHECKING:
    from avssl.model import Model


def kfold(model: Model, splits: Splits, config: KfoldConfig) -> Report:
    """`kfold.STREAM.accuracy` (the mean over the folds), `.std`, and `.fold.F` for each; per-class values and
    confusion are those of all items together, each scored by the model that did not see it."""
    rows = [row for some in splits.values() for row in some] if not config.split else list(splits.get(config.split, ()))
    rows = labelled(spread_over(rows, config.limit))
    folds = sorted({row.fold for row in rows if row.fold is not None})
    check(
        len(folds) > 1 and all(row.fold is not None for row in rows),
        f"k-fold needs a fold for every row; there {'is' if len(folds) == 1 else 'are'} {len(folds)}",
        fix="give a manifest with a `fold` column, as ESC-50 has",
        error=DataError,
    )
    names, single = probe_streams(model, config)
    codec = label_codec(rows)
    report = Report("kfold", protocol=protocol(config, streams=names, folds=folds, target=codec.kind))
    rows, vectors = embed_split(model, rows, single, config, report)
    report.n |= {"items": len(rows), "folds": len(folds)}
    fold_of = np.array([row.fold for row in rows])
    for name in names:
        x, has = matrix(vectors, name)
        if not has.any():
            continue
        chosen = [row for row, there in zip(rows, has, strict=True) if there]
        labels, own, x = encode(chosen, codec), fold_of[has], x[has]
        scores = np.zeros(len(x)) if labels.numbers else np.zeros((len(x), len(codec.classes)))
        each: dict[str, dict[str, float]] = {}
        for fold in folds:
            held = own == fold
            check(
                held.any() and (~held).any(),
                f"fold {fold} of {name} is empty",
                error=DataError,
                fix="check the fold column, and bad files",
            )
            known = np.flatnonzero(~held)
            if config.per_class is not None:
                kept = {r.id for r in few_rows([chosen[i] for i in known], config.per_class, seed=config.seed)}
                known = np.array([i for i in known if chosen[i].id in kept])
            train = encode([chosen[i] for i in known], codec)
            if config.fit == "knn":
                scores[held] = neighbours(x[known], train, x[held], config.k, config.temperature)
            else:
                scores[held] = fit_probe(x[known], train, x[held], config, [chosen[i].group for i in known])[0]
            each[str(fold)] = fold_metrics(scores[held], labels.y[held], labels.numbers, config.empty)
        score(report, f"kfold.{name}", scores, labels, config, own)
        report.add(f"kfold.{name}", summary(each))
    return report


def fold_metrics(scores: np.ndarray, y: np.ndarray, numbers: bool, empty: metrics.Empty) -> dict[str, float]:
    """The metrics of one fold."""
    return metrics.regression(scores, y) if numbers else metrics.classification(scores, y, empty=empty)[0]


def summary(each: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over the folds, sample standard deviation (`NAME.std`) and each fold's value (`NAME.fold.F`). each: fold ->
    metric -> value; also for folds that were fine-tuned in runs of their own."""
    out: dict[str, float] = {}
    for name in _shared(list(each.values())):
        values = [float(fold[name]) for fold in each.values()]
        out[name] = float(np.mean(values))
        spread = len(values) > 1 and bool(np.isfinite(values).all())
        out[f"{name}.std"] = float(np.std(values, ddof=1)) if spread else float("nan")
        out |= {f"{name}.fold.{fold}": value for fold, value in zip(each, values, strict=True)}
    return out


def _shared(folds: Sequence[Mapping[str, float]]) -> list[str]:
    return [name for name in folds[0] if all(name in fold for fold in folds)] if folds else []

"""The metric names that the built-in protocols can give, known before anything is computed: a misspelt `--fail-under`
is an error at once. A "*" stands for what only the data tell."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from avssl.evaluation.configs import ClassificationConfig, FeatureConfig, KfoldConfig, RetrievalConfig

if TYPE_CHECKING:
    from avssl.model import Model

NUMBERS = ("pearson", "spearman", "mse", "mae", "r2")
SEVERAL = ("map", "auc", "d_prime", "f1")  # of items with any number of labels
ONE = ("accuracy", "mcc", "top5", *SEVERAL)


def retrieval(model: Model, config: RetrievalConfig) -> Iterable[str]:
    streams = config.streams or tuple(sorted(model.backbone.modalities))
    pairs = [*itertools.permutations(streams, 2), *(((s, s) for s in streams) if config.within else ())]
    metrics = [*(f"r@{k}" for k in config.k), "median_rank", "mrr"]
    for (query, gallery), level, metric in itertools.product(pairs, config.levels, metrics):
        yield f"retrieval.{query}->{gallery}.{level}.{metric}"


def probe(model: Model, config: FeatureConfig) -> Iterable[str]:
    return _of_streams("probe", model, config)


def knn(model: Model, config: FeatureConfig) -> Iterable[str]:
    return _of_streams("knn", model, config)


def kfold(model: Model, config: KfoldConfig) -> Iterable[str]:
    for name in _of_streams("kfold", model, config):
        yield from (name, f"{name}.std", f"{name}.fold.*")


def classification(model: Model, config: ClassificationConfig) -> Iterable[str]:
    codec = model.codec
    if codec is None:
        return []
    known = NUMBERS if codec.kind == "float" else ONE if codec.exclusive else SEVERAL
    return [f"classification.{metric}" for metric in known]


def _of_streams(task: str, model: Model, config: FeatureConfig) -> list[str]:
    streams = config.streams or tuple(model.backbone.widths())
    return [f"{task}.{stream}.{metric}" for stream in streams for metric in (*ONE, *NUMBERS)]


__all__ = ["classification", "kfold", "knn", "probe", "retrieval"]

"""Weighted nearest neighbours on frozen features: nothing is fitted, so nothing can be tuned by accident."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.evaluation import metrics, ranking
from avssl.evaluation.configs import KnnConfig
from avssl.evaluation.features import on_features
from avssl.evaluation.labels import Labels, Splits
from avssl.evaluation.report import Report

if TYPE_CHECKING:
    from avssl.model import Model


def knn(model: Model, splits: Splits, config: KnnConfig) -> Report:
    """`knn.STREAM.accuracy` and the like, by the training split."""
    return on_features("knn", model, splits, config, fit_knn)


def fit_knn(
    x: np.ndarray, labels: Labels, z: np.ndarray, config: KnnConfig, groups: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """(scores of z, facts): (M, C) weighted shares of the k nearest rows of x, (M,) weighted means of numbers."""
    return neighbours(x, labels, z, config.k, config.temperature), {"k": min(config.k, len(x))}


def neighbours(x: np.ndarray, labels: Labels, z: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Weights exp(cosine / temperature) over the k nearest, normalised; among equally near ones the earlier row."""
    known, asked = ranking.unit(x), ranking.unit(z)
    k = min(k, len(known))
    values = (
        labels.y.astype(np.float64)[:, None]
        if labels.numbers
        else metrics.one_hot(labels.y, len(labels.codec.classes)).astype(np.float64)
    )
    out = np.empty((len(asked), values.shape[1]))
    for rows in ranking.blocks(len(asked), len(known)):
        similarity = asked[rows] @ known.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        near = np.take_along_axis(similarity, nearest, 1).astype(np.float64)
        weights = np.exp((near - near.max(1, keepdims=True)) / temperature)
        weights /= weights.sum(1, keepdims=True)
        out[rows] = np.einsum("qk,qkc->qc", weights, values[nearest])
    return out[:, 0] if labels.numbers else out

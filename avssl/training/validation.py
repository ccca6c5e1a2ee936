"""Looks at the validation split during a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from avssl.data.clip import Row
from avssl.data.loader import evaluation_batches
from avssl.data.sampler import Key, item_seed
from avssl.loss import to_device
from avssl.training.loop import Run
from avssl.training.step import StepOutput, seed_everything

KNN_ROWS = 2000  # training rows that a k-NN look compares with


def validator(rows: Sequence[Row]) -> Callable[[Run], Callable[[int], Mapping[str, float]]]:
    """What `build_run` takes: metrics of a supervised run, else the objective itself with draws that are always the same;
    every `monitor.knn_every` epochs also k-NN accuracy of the features, where rows are labelled."""

    def bound(run: Run) -> Callable[[int], Mapping[str, float]]:
        codec = run.loader.items.codec
        supervised = "head" in run.loss.exports() and codec is not None and codec.kind != "characters"
        every = run.recipe.monitor.knn_every * run.per_epoch

        def look(update: int) -> Mapping[str, float]:
            found = (supervised_metrics if supervised else objective)(run, rows)
            return {**found, **neighbours(run, rows)} if every and update % every == 0 else found

        return look

    return bound


@torch.no_grad()
def neighbours(run: Run, rows: Sequence[Row]) -> dict[str, float]:
    """{"knn.STREAM.accuracy"} (mAP for several labels): validation rows by their 20 nearest among the first training rows."""
    from avssl.evaluation.knn import neighbours as scores
    from avssl.evaluation.labels import encode, label_codec
    from avssl.evaluation.metrics import classification

    train = [r for r in run.loader.items.rows if r.labels][:KNN_ROWS]
    asked = [r for r in rows if r.labels]
    if not train or not asked:
        return {}
    codec = label_codec(train)
    features = []
    for some in (train, asked):
        pooled: dict[str, list[Any]] = {}
        order: list[int] = []
        for indices, _, batch in _batches(run, some, labels=False):
            order += indices
            for stream, x in run.loss.backbone(run.frontend(batch.to(run.device))).pooled.items():
                pooled.setdefault(stream, []).append(x.float().cpu().numpy())
        features.append((encode([some[i] for i in order], codec), {k: np.concatenate(v) for k, v in pooled.items()}))
    (known, x), (truth, z) = features
    metric = "map" if truth.multi else "accuracy"
    if truth.numbers:
        return {}
    return {
        f"knn.{k}.{metric}": classification(scores(x[k], known, z[k], 20, 0.07), truth.y)[0][metric]
        for k in z
        if k in x
    }


@torch.no_grad()
def objective(run: Run, rows: Sequence[Row]) -> dict[str, float]:
    """{"loss", its terms, its metrics} over the rows in an order that is always the same; every item keeps its seed, so
    that two looks differ by the model alone. Batches are as in training: a contrast needs other items to tell apart."""
    out = StepOutput()
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    for indices, _, batch in _batches(run, rows, mixed=True):
        seeds = torch.tensor([item_seed(run.recipe.train.seed, Key(i, 0), salt=0xEA1) for i in indices])
        batch = run.frontend(dataclasses.replace(batch, seeds=seeds).to(run.device))
        seed_everything(run.recipe.train.seed, indices[0])
        with run.stepper.autocast():
            out.add(run.loss.compute(batch, to_device(run.loss.sample(batch), run.device)), run.device)
    terms = {k: (w, float(s / c)) for k, (w, s, c) in out.terms.items()}
    return {
        "loss": sum(w * v for w, v in terms.values()),
        **{k: v for k, (_, v) in terms.items()},
        **{k: float(s / c) for k, (s, c) in out.metrics.items()},
    }


@torch.no_grad()
def supervised_metrics(run: Run, rows: Sequence[Row]) -> dict[str, float]:
    """Classification metrics of the head over the rows, one view each."""
    from avssl.evaluation.metrics import classification, probabilities, regression

    codec = run.loader.items.codec
    assert codec is not None
    head = run.loss.exports()["head"]
    logits: list[Any] = [None] * len(rows)
    for indices, _, batch in _batches(run, rows):
        batch = run.frontend(batch.to(run.device))
        with run.stepper.autocast():
            values = head(run.loss.backbone(batch, only=getattr(head, "streams", None))).float().cpu().numpy()
        for i, value in zip(indices, values, strict=True):
            logits[i] = value
    seen = [i for i, value in enumerate(logits) if value is not None]
    targets = np.stack([np.asarray(codec.encode(rows[i])) for i in seen])
    scores = np.stack([logits[i] for i in seen])
    if codec.kind == "float":
        return regression(scores[:, 0], targets)
    multi = codec.kind == "multi_hot" and bool((targets.sum(1) != 1).any())
    if codec.kind == "multi_hot" and not multi:  # soft targets in training, but one class each: there is an accuracy
        targets = targets.argmax(1)
    return classification(probabilities(scores, multi), targets)[0]


def _batches(run: Run, rows: Sequence[Row], labels: bool = True, mixed: bool = False) -> Any:
    items = run.loader.items
    return evaluation_batches(
        rows,
        run.frontend,
        batch_size=run.loader.micro,
        workers=run.loader.workers,
        views=False,
        modalities=items.modalities,
        codec=items.codec if labels else None,
        limits=items.limits,
        bad=run.loader.bad,
        mixed=mixed,
        timeout=run.loader.timeout,
    )

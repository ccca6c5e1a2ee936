"""Looks at the validation split during a run, shared by its processes.

Each process reads and encodes its share of the rows, in step with the others; what it found is gathered, and every
process computes the same numbers, which are those of one process. Sharded parameters come together only for a forward
pass of all processes: there, each looks at all rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from avssl.batch import Batch
from avssl.data.clip import Row
from avssl.data.items import EvaluationItems
from avssl.data.loader import CHUNK, evaluation_batches
from avssl.data.sampler import Key, item_seed
from avssl.data.workers import WorkerPool
from avssl.errors import DataError, check
from avssl.loss import LossOutput, to_device
from avssl.training.distributed import World
from avssl.training.loop import Run
from avssl.training.step import StepOutput, seed_everything

KNN_ROWS = 2000  # training rows that a k-NN look compares with


def validator(rows: Sequence[Row]) -> Callable[[Run], Callable[[int], Mapping[str, float]]]:
    """What `build_run` takes: metrics of a supervised run, else the objective itself with draws that are always the same;
    at the first look after every `monitor.knn_every` epochs also k-NN accuracy of the features, where rows are labelled."""

    def bound(run: Run) -> Callable[[int], Mapping[str, float]]:
        codec = run.loader.items.codec
        supervised = "head" in run.loss.exports() and codec is not None and codec.kind != "characters"
        every, between = run.recipe.monitor.knn_every * run.per_epoch, run.validate_every

        def look(update: int) -> Mapping[str, float]:
            found = (supervised_metrics if supervised else objective)(run, rows)
            before = (update - 1) // between * between  # the look before this one
            return {**found, **neighbours(run, rows)} if every and update // every > before // every else found

        return look

    return bound


@torch.no_grad()
def neighbours(run: Run, rows: Sequence[Row]) -> dict[str, float]:
    """{"knn.STREAM.accuracy"} (mAP for several labels): validation rows of known classes by their 20 nearest among the
    training rows, of which KNN_ROWS are taken, spread over all."""
    from avssl.evaluation.knn import neighbours as scores
    from avssl.evaluation.labels import encode, label_codec, spread_over
    from avssl.evaluation.metrics import classification

    labelled = [r for r in run.loader.items.rows if r.labels]
    known_labels = {label for row in labelled for label in row.labels}
    asked = [r for r in rows if r.labels and known_labels.issuperset(r.labels)]
    if not labelled or not asked:
        return {}
    codec, train = label_codec(labelled), spread_over(labelled, KNN_ROWS)
    features = []
    for some in (train, asked):
        vectors: dict[int, dict[str, np.ndarray]] = {}
        for indices, batch in _batches(run, some, labels=False):
            pooled = run.loss.backbone(run.frontend(batch.to(run.device))).pooled
            for j, i in enumerate(indices):
                vectors[i] = {stream: x[j].float().cpu().numpy() for stream, x in pooled.items()}
        vectors = _together(run, vectors)
        streams = sorted(set.intersection(*map(set, vectors.values())))
        whole = {name: np.stack([one[name] for one in vectors.values()]) for name in streams}
        features.append((encode([some[i] for i in vectors], codec), whole))
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
    that two looks differ by the model alone. A contrast tells an item apart from as many others as in training."""
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    groups = _cut(range(len(rows)), contrasted(run) if run.loss.contrastive else run.loader.micro)
    world = _sharing(run)
    mine = range(world.rank, len(groups), world.ranks)
    found: dict[int, StepOutput] = {}
    representations: dict[str, list[torch.Tensor]] = {}
    plan = [(g, piece) for g in mine for piece in _cut(groups[g], run.loader.micro)]
    last = {g: n for n, (g, _) in enumerate(plan)}
    pieces = _pieces(run, rows, [piece for _, piece in plan])
    for n, (indices, batch) in enumerate(world.in_step(pieces, run.device)):
        group = plan[n][0]
        out = found.setdefault(group, StepOutput())
        if batch is not None:
            seeds = torch.tensor([item_seed(run.recipe.train.seed, Key(i, 0), salt=0xEA1) for i in indices])
            batch = run.frontend(dataclasses.replace(batch, seeds=seeds).to(run.device))
            seed_everything(run.recipe.train.seed, plan[n][1][0])
            draw = to_device(run.loss.sample(batch), run.device)
            with run.stepper.autocast():
                if run.loss.contrastive:
                    terms, own = run.loss.local(batch, draw)
                    for name, x in own.items():
                        representations.setdefault(name, []).append(x)
                else:
                    terms = run.loss.compute(batch, draw)
            out.add(terms, run.device)
        if representations and last[group] == n:
            with run.stepper.autocast():
                joint: LossOutput = run.loss.joint({k: torch.cat(x) for k, x in representations.items()})
            out.add(joint, run.device)
            representations = {}
    return _means(_together(run, {g: (_plain(o.terms), _plain(o.metrics)) for g, o in found.items() if o.terms}))


def contrasted(run: Run) -> int:
    """How many items a contrast of this run tells apart."""
    negatives = run.stepper.negatives
    sizes = {"global": run.batch, "rank": run.batch // run.world.ranks}
    return sizes[negatives] if negatives in sizes else int(negatives)


def _plain(sums: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(map(float, values)) for name, values in sums.items()}


def _means(groups: Mapping[int, Any]) -> dict[str, float]:
    """{"loss", terms, metrics} of (weight, sum, count) and (sum, count) by group, added up in the order of the groups."""
    terms: dict[str, tuple[float, float, float]] = {}
    metrics: dict[str, tuple[float, float]] = {}
    for some, others in groups.values():
        for name, (weight, total, count) in some.items():
            _, a, b = terms.get(name, (weight, 0.0, 0.0))
            terms[name] = (weight, a + total, b + count)
        for name, (total, count) in others.items():
            a, b = metrics.get(name, (0.0, 0.0))
            metrics[name] = (a + total, b + count)
    values = {name: (weight, total / count if count else math.nan) for name, (weight, total, count) in terms.items()}
    return {
        "loss": sum(weight * value for weight, value in values.values()),
        **{name: value for name, (_, value) in values.items()},
        **{name: total / count if count else math.nan for name, (total, count) in metrics.items()},
    }


@torch.no_grad()
def supervised_metrics(run: Run, rows: Sequence[Row]) -> dict[str, float]:
    """Classification metrics of the head over the rows, one view each."""
    from avssl.evaluation.labels import encode
    from avssl.evaluation.metrics import classification, probabilities, regression

    codec = run.loader.items.codec
    assert codec is not None
    head = run.loss.exports()["head"]
    logits: dict[int, np.ndarray] = {}
    for indices, batch in _batches(run, rows):
        batch = run.frontend(batch.to(run.device))
        with run.stepper.autocast():
            values = head(run.loss.backbone(batch, only=getattr(head, "streams", None))).float().cpu().numpy()
        logits.update(zip(indices, values, strict=True))
    logits = _together(run, logits)
    targets = encode([rows[i] for i in logits], codec).y
    scores = np.stack(list(logits.values()))
    if codec.kind == "float":
        return regression(scores[:, 0], targets)
    return classification(probabilities(scores, multi_label=not codec.exclusive), targets)[0]


# -- sharing the rows -------------------------------------------------------------------------------------------------
def _sharing(run: Run) -> World:
    """The processes that share a look."""
    return World() if run.recipe.train.shard else run.world


def _together(run: Run, found: Mapping[int, Any]) -> dict[int, Any]:
    """What all processes found, by number, in the order of the numbers."""
    everyone = _sharing(run).gather_objects(found)
    whole = {number: value for some in everyone for number, value in some.items()}
    check(
        bool(whole),
        "none of the validation items can be used",
        fix=f"see {run.folder / 'bad_files.csv'}",
        error=DataError,
    )
    return {number: whole[number] for number in sorted(whole)}


def _batches(run: Run, rows: Sequence[Row], labels: bool = True) -> Iterator[tuple[list[int], Batch]]:
    """(row numbers, batch) of this process's share, items of equal shapes together."""
    world, items = _sharing(run), run.loader.items
    mine = range(world.rank, len(rows), world.ranks)
    batches = evaluation_batches(
        [rows[i] for i in mine],
        run.frontend,
        batch_size=run.loader.micro,
        workers=run.loader.workers,
        views=False,
        modalities=items.modalities,
        codec=items.codec if labels else None,
        limits=items.limits,
        bad=run.loader.bad,
        timeout=run.loader.timeout,
    )
    for indices, _, batch in world.in_step(batches, run.device):
        yield [mine[i] for i in indices], batch


def _pieces(run: Run, rows: Sequence[Row], plan: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Batch | None]]:
    """For each list of row numbers: those that can be read, and their batch, padded to the longest (None without any)."""
    loader = run.loader
    items = EvaluationItems(
        rows, run.frontend, loader.items.codec, loader.items.modalities, loader.items.limits, False, some=False
    )
    with WorkerPool(items, loader.workers, timeout=loader.timeout) as pool:
        made = pool.map(chunk for piece in plan for chunk in _cut(piece, CHUNK))
        for piece in plan:
            parts = [one for _ in _cut(piece, CHUNK) for one in next(made)]
            loader.bad.add(b for one in parts for b in one.bad)
            good = [one for one in parts if one.batch is not None]
            batches = [one.batch for one in good if one.batch is not None]
            batch = Batch.cat(batches, run.frontend.pad_values) if batches else None
            yield [i for one in good for i in one.indices], batch


def _cut(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]

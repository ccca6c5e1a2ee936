"""Labels of clips, by a model that has a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.data.bad import BadFiles
from avssl.data.clip import Row
from avssl.embedding.encode import ROWS
from avssl.embedding.rows import probed
from avssl.errors import CheckpointError, DataError, check
from avssl.progress import steps
from avssl.words import counted, none_of

if TYPE_CHECKING:
    from avssl.data.clip import Limits
    from avssl.data.targets import Codec
    from avssl.model import Model


@dataclass(repr=False)
class Predictions:
    """scores: (N, C) probabilities (softmax for one class each, sigmoid for several), or (N, 1) numbers."""

    ids: list[str]
    indices: list[int]  # positions among the rows that were given
    scores: np.ndarray
    views: np.ndarray  # (N,) how many views were averaged
    classes: tuple[str, ...]
    kind: str  # of the codec: "index", "multi_hot" or "float"
    exclusive: bool  # one class each

    def __repr__(self) -> str:
        kind = "one of" if self.exclusive else "several of"
        what = "numbers" if self.kind == "float" else f"{kind} {counted(len(self.classes), 'class', 'classes')} each"
        return f"<Predictions of {counted(len(self.ids), 'item')}: {what}>"

    def __len__(self) -> int:
        return len(self.ids)

    def bar(self, threshold: float | None = None) -> float:
        """The score that a label has to exceed: unless given, 0.5 where a clip may have several labels, else 0."""
        return threshold if threshold is not None else 0.0 if self.exclusive else 0.5

    def labels(self, number: int, threshold: float | None = None, top: int = 5) -> list[tuple[str, float]]:
        """(class, score) of one item, best first: at most `top`; of several-label models those above the threshold."""
        scores = self.scores[number]
        order = np.argsort(-scores, kind="stable")[:top].tolist()
        if not self.exclusive:
            order = [c for c in order if scores[c] > self.bar(threshold)]
        return [(self.classes[c], float(scores[c])) for c in order]

    def plain(self, threshold: float | None = None, top: int = 5) -> list[dict[str, Any]]:
        """One JSON-able record per item: `label` is the best one, or None when it does not exceed the threshold."""
        if self.kind == "float":
            return [{"id": id, "value": float(s[0])} for id, s in zip(self.ids, self.scores, strict=True)]
        out = []
        for number, id in enumerate(self.ids):
            best = int(self.scores[number].argmax())
            sure = float(self.scores[number, best]) > self.bar(threshold)
            out.append(
                {
                    "id": id,
                    "label": self.classes[best] if sure else None,
                    "labels": [{"label": name, "score": s} for name, s in self.labels(number, threshold, top)],
                }
            )
        return out


def predict_rows(
    model: Model,
    rows: Sequence[Row],
    *,
    views: str = "all",
    batch_size: int = 32,
    workers: int = 0,
    on_bad: str = "skip",
    bad: BadFiles | None = None,
    limits: Limits | None = None,
    precision: str = "fp32",
) -> Predictions:
    """Scores of rows: the mean over the frontend's views ("one": of its one evaluation view) of the head's probabilities.
    precision: see `Model.autocast`.

    Raises CheckpointError for a model without a head or class list, DataError when nothing could be read.
    """
    check(views in ("all", "one"), f"views is {views!r}", fix="all or one")
    codec = model.codec
    check(
        model.head is not None and codec is not None,
        f"{model.path} has no head that predicts",
        fix="fine-tune it first: avssl finetune RECIPE --from ...",
        error=CheckpointError,
    )
    assert codec is not None
    check(
        codec.kind != "characters",
        f"{model.path} writes characters, not labels",
        fix="use its own plugin's command",
        error=CheckpointError,
    )
    bad = bad if bad is not None else BadFiles()
    found: dict[int, list[tuple[str, np.ndarray]]] = {}
    with steps("predicting", len(rows)) as step:
        for start in range(0, len(rows), ROWS):
            some = probed(rows[start : start + ROWS], model.backbone.modalities, workers)
            for index, view, one in _views(
                model, some, codec, views, batch_size, workers, on_bad, bad, limits, precision
            ):
                found.setdefault(start + index, []).append((view, one))
                step(len(found))
    check(
        bool(found),
        f"{none_of(len(rows), 'item')} could be read",
        error=DataError,
        fix=f"the first: {next(iter(bad.items.values())).reason}" if bad.items else "give some files",
    )
    indices = sorted(found)
    scores = np.stack([np.mean([s for _, s in sorted(found[i], key=lambda v: v[0])], axis=0) for i in indices])
    return Predictions(
        [rows[i].id for i in indices],
        indices,
        scores,
        np.array([len(found[i]) for i in indices]),
        codec.classes,
        codec.kind,
        codec.exclusive,
    )


def _views(
    model: Model,
    rows: Sequence[Row],
    codec: Codec,
    views: str,
    batch_size: int,
    workers: int,
    on_bad: str,
    bad: BadFiles,
    limits: Limits | None,
    precision: str,
) -> Any:
    """(row number, view, (C,) scores in float64) of every view of some rows."""
    from avssl.data.loader import evaluation_batches
    from avssl.evaluation.metrics import probabilities

    for indices, names, batch in evaluation_batches(
        rows,
        model.frontend,
        batch_size=batch_size,
        workers=workers,
        views=views == "all",
        on_bad=on_bad,
        bad=bad,
        limits=limits,
    ):
        logits = model.logits(batch, precision).float().cpu().numpy().astype(np.float64)  # (B, C)
        if not np.isfinite(logits).all():
            item = batch.ids[int(np.flatnonzero(~np.isfinite(logits).all(1))[0])]
            raise DataError(f"{item}: the model's output is not finite", fix="the weights or the input are damaged")
        scores = logits if codec.kind == "float" else probabilities(logits, multi_label=not codec.exclusive)
        yield from zip(indices, names, scores, strict=True)

"""A model looks at clips: vectors, and the logits of its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from avssl.data.bad import BadFiles
from avssl.data.clip import Row
from avssl.data.workers import default_workers

if TYPE_CHECKING:
    from avssl.model import Model


@dataclass
class Look:
    """What the model makes of `rows`, one evaluation view each. Absent vectors are nan and not `present`."""

    rows: Sequence[Row]
    vectors: dict[str, np.ndarray] = field(default_factory=dict)  # stream -> (N, D)
    present: dict[str, np.ndarray] = field(default_factory=dict)  # stream -> (N,) bool
    bad: BadFiles = field(default_factory=BadFiles)
    logits: np.ndarray | None = None  # (N, C); rows of nan where the head could not be asked

    def keep(self, rows: np.ndarray) -> None:
        """Only these row numbers, in this order."""
        self.rows = [self.rows[i] for i in rows]
        self.vectors = {k: v[rows] for k, v in self.vectors.items()}
        self.present = {k: v[rows] for k, v in self.present.items()}
        self.logits = None if self.logits is None else self.logits[rows]


def look(model: Model, rows: Sequence[Row], batch_size: int = 32, workers: int | None = None) -> Look:
    """Embed the rows in every stream of the model, each item in its single evaluation view, as `avssl evaluate --task
    retrieval` does unless it is told `views=all`."""
    from avssl.embedding.encode import EmbedOptions, embed_rows

    workers = default_workers() if workers is None else workers
    out = Look(rows)
    vectors = embed_rows(model, rows, EmbedOptions(views="one"), batch_size=batch_size, workers=workers, bad=out.bad)
    for stream in vectors.values:
        values = np.asarray(vectors[stream], dtype=np.float32)
        width = values.shape[1] if values.ndim == 2 else 0
        full, present = np.full((len(rows), width), np.nan, np.float32), np.zeros(len(rows), bool)
        full[vectors.indices], present[vectors.indices] = values, vectors.present[stream]
        if present.any():
            out.vectors[stream], out.present[stream] = full, present
    if model.head is not None and model.codec is not None:
        out.logits = _logits(model, rows, batch_size, workers)
    return out


def _logits(model: Model, rows: Sequence[Row], batch_size: int, workers: int) -> np.ndarray | None:
    from avssl.data.loader import evaluation_batches

    assert model.codec is not None
    out = np.full((len(rows), model.codec.size), np.nan, np.float32)
    for indices, _, batch in evaluation_batches(
        rows, model.frontend, batch_size=batch_size, workers=workers, views=False, modalities=model.backbone.modalities
    ):
        values = model.logits(batch).float().cpu().numpy()
        if values.ndim != 2 or values.shape[1] != out.shape[1]:
            return None  # a head of another kind: characters, regression of a sequence
        out[indices] = values
    return out

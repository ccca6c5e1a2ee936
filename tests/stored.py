"""A model whose head gives stored logits, so that what prediction makes of views can be held against known numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from avssl.batch import Batch, item
from avssl.data.clip import Clip, Request, Row
from avssl.data.targets import Codec
from avssl.frontend import Frontend
from avssl.prediction import predict_rows


class Numbered(Frontend):
    """Items that are their own numbers, each in several views."""

    modalities = frozenset({"text"})

    def views(self, row: Row) -> Sequence[Request]:
        return [Request({"text": None}, view=f"{v:03d}") for v in range(self.config)]

    def item(self, clips: Sequence[Clip], rng: Any) -> Batch:
        return item(clips[0].id, clips[0].seed, None, text=torch.tensor([int(clips[0].id)]))


def predicted(logits: np.ndarray, exclusive: bool) -> np.ndarray:
    """(V, N, C) float32 logits of V views of N items -> (N, C) scores by `predict_rows`."""
    views, items, classes = logits.shape
    looked_at: Counter[str] = Counter()

    def head(batch: Batch, precision: str) -> torch.Tensor:
        rows = []
        for id in batch.ids:
            rows.append(torch.from_numpy(logits[looked_at[id], int(id)]))
            looked_at[id] += 1
        return torch.stack(rows)

    codec = Codec("multi_hot", tuple(map(str, range(classes))), exclusive)
    backbone = SimpleNamespace(modalities=frozenset({"text"}))
    model: Any = SimpleNamespace(
        path="stored", head=head, codec=codec, backbone=backbone, frontend=Numbered(views), logits=head
    )
    found = predict_rows(model, [Row(str(i), {"text": f"item {i}"}) for i in range(items)], batch_size=7)
    assert found.views.tolist() == [views] * items and set(looked_at.values()) == {views}
    return found.scores

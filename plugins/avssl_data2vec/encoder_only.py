"""What an imported encoder without objective is wrapped in."""

from __future__ import annotations

from typing import Any

from avssl.backbone import Backbone
from avssl.batch import Batch
from avssl.errors import UsageError
from avssl.loss import Loss, LossOutput


class EncoderOnly(Loss[Backbone]):
    """An encoder whose head and teacher the file's converter dropped: to embed, to evaluate and to start from."""

    def compute(self, batch: Batch, draw: Any) -> LossOutput:
        raise UsageError("this model was imported without an objective", fix="--set loss.name=data2vec, or fine-tune it")

"""Supervised training: BERT's classifier on the pooled output."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features
from avssl.batch import Batch
from avssl.errors import DataError, check
from avssl.loss import Loss, LossOutput, Term

from .config import ClassifyConfig


class Head(nn.Linear):
    """pooled["audio"] -> (B, C) logits. A Linear itself, so that its tensors are called `head.weight`, `head.bias`."""

    streams = ("audio",)

    def __init__(self, dim: int, classes: int, dropout: float = 0.0) -> None:
        check(
            classes > 0,
            "loss.classes is 0 and no labels say how many there are",
            fix="set data.target, or loss.classes",
        )
        super().__init__(dim, classes)
        self.dropout = dropout

    def forward(self, features: Features) -> Tensor:  # type: ignore[override]
        return super().forward(F.dropout(features.pooled["audio"], self.dropout, self.training))


class Classify(Loss[Backbone]):
    """Cross-entropy. Targets: class indices (B,) or multi-hot (B, C); mixed ones as the frontend mixed the clips."""

    config: ClassifyConfig
    exclusive = True

    def __init__(self, backbone: Backbone, config: ClassifyConfig) -> None:
        super().__init__(backbone, config)
        self.head = Head(backbone.dim, config.classes, config.dropout)

    def exports(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "head": self.head}

    def compute(self, batch: Batch, draw: None) -> LossOutput:
        logits = self.head(self.backbone(batch, only=self.head.streams))
        return supervised(logits, batch, self.config.label_smoothing)


def supervised(logits: Tensor, batch: Batch, smoothing: float, weight: float = 1.0) -> LossOutput:
    """The cross-entropy term and the accuracy of (B, C) logits."""
    if batch.targets is None:
        raise DataError("a supervised batch has no targets", fix="set data.target, and give labels")
    logits, target = logits.float(), batch.targets.x

    def cross_entropy(target: Tensor) -> Tensor:
        if target.is_floating_point() and target.ndim == 2:
            target = target / target.sum(1, keepdim=True).clamp_min(1e-8)  # several labels: an even share each
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)

    each = cross_entropy(target)  # (B,)
    if "other" in batch.streams:  # mixed by the frontend
        share = batch.streams["share"].x.to(each.dtype)
        each = share * each + (1 - share) * cross_entropy(batch.streams["other"].x)
    total = each.sum()
    truth = target if target.ndim == 1 else target.argmax(1)
    return LossOutput(
        {"cross_entropy": Term(weight, total, len(batch))},
        {"accuracy": ((logits.argmax(1) == truth).sum().detach(), len(batch))},
    )

"""Fine-tuning with the authors' head (arXiv:2212.09058, section 3.3.3, and the released classifiers)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Features
from avssl.batch import Batch
from avssl.errors import DataError, check
from avssl.loss import Loss, LossOutput, Term
from avssl_beats.backbone import Beats, pooled
from avssl_beats.config import ClassifyConfig
from avssl_beats.encoder import at_least_float32


class PatchHead(nn.Module):
    """Features -> logits: dropout and a linear layer on every patch, then the mean over those that are not padding.

    The released classifiers apply a sigmoid to the result, whatever the task; the paper writes softmax.
    """

    streams = ("audio",)

    def __init__(self, dim: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, classes)

    def forward(self, features: Features) -> Tensor:
        """(B, C) logits."""
        return pooled(self.patches(features), features.pad.get("audio"))

    def patches(self, features: Features) -> Tensor:
        """(B, N, C) logits of every patch, padded ones included."""
        return self.linear(self.dropout(features.tokens["audio"]))


class BeatsClassify(Loss[Beats]):
    """Cross-entropy or binary cross-entropy of the authors' head."""

    config: ClassifyConfig

    def __init__(self, backbone: Beats, config: ClassifyConfig) -> None:
        super().__init__(backbone, config)
        check(
            config.classes > 0,
            "loss.classes is 0 and no labels say how many there are",
            fix="give labelled data and data.target, or set loss.classes",
        )
        self.head = PatchHead(backbone.dim, config.classes, config.dropout)
        self.exclusive = config.loss == "cross_entropy"

    def exports(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "head": self.head}

    def compute(self, batch: Batch, draw: None) -> LossOutput:
        if batch.targets is None:
            raise DataError("a fine-tuning batch has no targets", fix="set data.target, and give labels")
        logits = at_least_float32(self.head(self.backbone(batch, only=self.head.streams)))  # (B, C)
        target, smooth = batch.targets.x, self.config.label_smoothing
        if self._kind(target) == "cross_entropy":
            sums = F.cross_entropy(logits, target, reduction="sum", label_smoothing=smooth)
            truth = target if target.ndim == 1 else target.argmax(1)
            right = (logits.argmax(1) == truth).sum().detach()
            return LossOutput({"cross_entropy": Term(1.0, sums, len(batch))}, {"accuracy": (right, len(batch))})
        if target.ndim == 1:
            target = F.one_hot(target, logits.shape[1])
        target = target.to(logits.dtype) * (1 - 2 * smooth) + smooth  # every label towards one half, as ESPnet does
        sums = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return LossOutput({"bce": Term(1.0, sums, target.numel())})

    def _kind(self, target: Tensor) -> str:
        if self.config.loss != "auto":
            return self.config.loss
        return "bce" if target.is_floating_point() else "cross_entropy"

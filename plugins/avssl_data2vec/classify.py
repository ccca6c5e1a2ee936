"""Fine-tuning heads of the papers: RoBERTa's for sentences, BEiT's for images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features
from avssl.batch import Batch
from avssl.loss import LossOutput, Term
from avssl_data2vec.config import ImageClassifyConfig, TextClassifyConfig
from avssl_data2vec.heads import FineTuned, check_classes, targets_of
from avssl_data2vec.vision import VisionEncoder


class SentenceHead(nn.Module):
    """(B, C) logits from the first token."""

    streams = ("text",)

    def __init__(self, dim: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.linear = nn.Linear(dim, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Features) -> Tensor:
        first = features.tokens["text"][:, features.grid["text"].prefix]
        return self.linear(self.dropout(torch.tanh(self.dense(self.dropout(first)))))


class PatchHead(nn.Module):
    """(B, C) logits from pooled patches (give a backbone of data2vec 1 pooled_norm=false, so that this norm is the only
    one), or from the class token, which has passed the backbone's norm."""

    streams = ("vision",)

    def __init__(self, dim: int, config: ImageClassifyConfig) -> None:
        super().__init__()
        self.class_token, classes, scale = config.class_token, config.classes, config.initial_scale
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.norm else None
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight.mul_(scale)

    def forward(self, features: Features) -> Tensor:
        x = features.pooled["vision"]
        if self.class_token:
            x = features.tokens["vision"][:, features.grid["vision"].prefix - 1]
        return self.linear(x if self.norm is None else self.norm(x))


class TextClassify(FineTuned):
    """Cross-entropy, or squared error of one number."""

    config: TextClassifyConfig

    def __init__(self, backbone: Backbone, config: TextClassifyConfig) -> None:
        super().__init__(backbone, config)
        classes = 1 if config.regression else config.classes
        check_classes(classes)
        self.head = SentenceHead(backbone.dim, classes, config.dropout)

    def counts(self, batch: Batch, draw: None) -> dict[str, int]:
        return {"mse" if self.config.regression else "cross_entropy": len(batch)}

    def compute(self, batch: Batch, draw: None) -> LossOutput:
        target = targets_of(batch)
        logits = self.head(self.backbone(batch, only=self.head.streams)).float()
        if self.config.regression:
            return LossOutput({"mse": Term(1.0, (logits[:, 0] - target).square().sum(), len(batch))})
        right = (logits.argmax(1) == target).sum().detach()
        total = F.cross_entropy(logits, target, reduction="sum")
        return LossOutput({"cross_entropy": Term(1.0, total, len(batch))}, {"accuracy": (right, len(batch))})


class ImageClassify(FineTuned):
    """Cross-entropy with hard (B,) or mixed (B, C) targets and label smoothing."""

    config: ImageClassifyConfig
    exclusive = True

    def __init__(self, backbone: Backbone, config: ImageClassifyConfig) -> None:
        super().__init__(backbone, config)
        check_classes(config.classes)
        self.head = PatchHead(backbone.dim, config)
        if not config.class_token and isinstance(backbone, VisionEncoder) and not backbone.config.pooled_norm:
            for parameter in backbone.norm.parameters():  # pooled patches do not pass the last norm
                parameter.requires_grad_(False)

    def counts(self, batch: Batch, draw: None) -> dict[str, int]:
        return {"cross_entropy": len(batch)}

    def compute(self, batch: Batch, draw: None) -> LossOutput:
        target = targets_of(batch)
        logits = self.head(self.backbone(batch, only=self.head.streams)).float()
        smoothing = self.config.label_smoothing if self.training else 0.0
        total = F.cross_entropy(logits, target, reduction="sum", label_smoothing=smoothing)
        truth = target if target.ndim == 1 else target.argmax(1)
        right = (logits.argmax(1) == truth).sum().detach()
        return LossOutput({"cross_entropy": Term(1.0, total, len(batch))}, {"accuracy": (right, len(batch))})

"""Fine-tuning for sound events: classes of every frame, pooled (AudioSet tagging of arXiv:2202.03555, Sec. 5.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features
from avssl.batch import Batch
from avssl.loss import LossOutput, Term
from avssl_data2vec.config import AudioClassifyConfig
from avssl_data2vec.ctc import SpeechMask, draw_mask, masked_features
from avssl_data2vec.heads import FineTuned, check_classes, targets_of
from avssl_data2vec.modules import check_channels


def pool_logits(logits: Tensor, kind: str, real: Tensor | None = None) -> Tensor:
    """(B, T, C) frame logits -> (B, C) logits of the clip, in float32. real: (B, T) bool, the frames that are no padding.

    lin_softmax: p = sum(p_t^2) / sum(p_t) (arXiv:1810.09050), computed in logarithms.
    """
    x = logits.float()
    frames = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if real is None else real
    if kind == "max":
        return x.masked_fill(~frames[..., None], -math.inf).amax(1)
    weight = frames[..., None].to(x.dtype)
    if kind == "average":
        return (x * weight).sum(1) / weight.sum(1)
    log_p = F.logsigmoid(x).masked_fill(~frames[..., None], -math.inf)
    if kind == "lin_softmax":
        total = torch.logsumexp(2 * log_p, 1) - torch.logsumexp(log_p, 1)
    else:
        total = torch.logsumexp(log_p, 1) - weight.sum(1).log()
    total = total.clamp(max=-1e-7)  # a probability of 1 has no finite logit
    return total - torch.log(-torch.expm1(total))


class TagHead(nn.Module):
    """Frames -> (B, C) logits."""

    streams = ("audio",)

    def __init__(self, dim: int, classes: int, pooling: str, dropout: float) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, classes)

    def forward(self, features: Features) -> Tensor:
        if self.pooling == "average_before":
            return self.linear(self.dropout(features.pooled["audio"])).float()
        prefix, pad = features.grid["audio"].prefix, features.pad.get("audio")
        logits = self.linear(self.dropout(features.tokens["audio"][:, prefix:]))
        return pool_logits(logits, self.pooling, None if pad is None else ~pad[:, prefix:])


class AudioClassify(FineTuned):
    """Binary cross-entropy, summed over the classes and divided by the number of labels in the batch, as the official
    criterion does. Frames and channels are hidden in training as in pretraining. Padding is left out of the pooling."""

    config: AudioClassifyConfig

    def __init__(self, backbone: Backbone, config: AudioClassifyConfig) -> None:
        super().__init__(backbone, config)
        check_classes(config.classes)
        check_channels(backbone, config.channels.probability)
        self.head = TagHead(backbone.dim, config.classes, config.pooling, config.final_dropout)

    def sample(self, batch: Batch) -> SpeechMask:
        if not self.training:
            return SpeechMask(None, None)
        return draw_mask(self.backbone, batch, self.config.spans, self.config.channels)

    def counts(self, batch: Batch, draw: SpeechMask) -> dict[str, Tensor]:
        return {"bce": self._targets(batch).sum()}

    def compute(self, batch: Batch, draw: SpeechMask) -> LossOutput:
        target = self._targets(batch)
        logits = self.head(masked_features(self.backbone, batch, draw, self.config.channels_first))
        total = F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="sum")
        return LossOutput({"bce": Term(1.0, total, target.sum())})

    def _targets(self, batch: Batch) -> Tensor:
        """(B, C): vectors as they are, indices as vectors with a single 1."""
        target = targets_of(batch, "set data.target=multi_hot, and give labels")
        return F.one_hot(target, self.config.classes).float() if target.ndim == 1 else target

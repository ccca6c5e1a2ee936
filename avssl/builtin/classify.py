"""Supervised fine-tuning: a linear head on pooled features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features
from avssl.batch import Batch
from avssl.builtin.configs import ClassifyConfig
from avssl.errors import DataError, UsageError, check, nearest
from avssl.loss import Loss, LossOutput, Term


class Head(nn.Module):
    """Features -> logits: the mean of some pooled streams, [LayerNorm,] [dropout,] linear."""

    def __init__(self, streams: tuple[str, ...], dim: int, classes: int, norm: bool, dropout: float) -> None:
        super().__init__()
        self.streams = streams
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        """(B, C) logits. Streams that this batch does not have are left out of the mean (at least one must be there)."""
        present = [features.pooled[s] for s in self.streams if s in features.pooled]
        if not present:
            raise DataError(
                f"the head reads {', '.join(self.streams)}; this item gives {', '.join(features.pooled)}",
                fix="give items with that modality, or fine-tune on the other one",
            )
        return self.linear(self.dropout(self.norm(torch.stack(present).mean(0) if len(present) > 1 else present[0])))


class Classify(Loss[Backbone]):
    """Cross-entropy, binary cross-entropy or squared error of a linear head; any backbone."""

    config: ClassifyConfig

    def __init__(self, backbone: Backbone, config: ClassifyConfig) -> None:
        super().__init__(backbone, config)
        check(
            config.classes > 0,
            "loss.classes is 0 and no labels say how many there are",
            fix="give labelled data and data.target, or set loss.classes",
        )
        streams = config.streams or default_streams(backbone)
        widths = backbone.widths()
        for stream in streams:
            check(stream in widths, f"loss.streams: the backbone gives no {stream!r}", fix=nearest(stream, set(widths)))
        sizes = {widths[s] for s in streams}
        if len(sizes) > 1:
            raise UsageError(f"loss.streams {streams} have widths {sorted(sizes)}", fix="average streams of one width")
        self.head = Head(streams, sizes.pop(), config.classes, config.norm, config.dropout)
        self.exclusive = config.loss == "cross_entropy"

    def exports(self) -> dict[str, nn.Module]:
        """The head goes with the backbone: it is what predicts."""
        return {"backbone": self.backbone, "head": self.head}

    def compute(self, batch: Batch, draw: None) -> LossOutput:
        """One term, named after the loss, and the accuracy where there is one class each."""
        logits = self.head(self.backbone(batch, only=self.head.streams))  # (B, C)
        return supervised(logits, batch, self.config.loss, self.config.label_smoothing)


def supervised(logits: Tensor, batch: Batch, kind: str, label_smoothing: float = 0.0) -> LossOutput:
    """Cross-entropy, binary cross-entropy or squared error of (B, C) logits and the batch's targets; kind "auto" is
    told by the targets. Raises DataError when there are none, UsageError when the kind is for other targets."""
    if batch.targets is None:
        raise DataError("a fine-tuning batch has no targets", fix="set data.target, and give labels")
    target = batch.targets.x
    n = len(batch)
    if kind == "auto":
        kind = "cross_entropy" if not target.is_floating_point() else "bce" if target.ndim == 2 else "mse"
    soft, single = target.is_floating_point(), target.ndim == 1
    fits = {"cross_entropy": single != soft, "bce": soft and not single, "mse": soft and single}
    check(
        fits[kind],
        f"loss.loss = {kind!r} cannot be computed from targets of shape {tuple(target.shape)}, {target.dtype}",
        fix="cross_entropy goes with data.target=index, bce with multi_hot, mse with float",
    )
    useless = label_smoothing > 0 and kind != "cross_entropy"
    check(not useless, f"loss.label_smoothing means nothing to {kind}", fix="set it to 0")
    logits = logits.float()
    metrics = {}
    if kind == "cross_entropy":
        total = F.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing)
        truth = target if target.ndim == 1 else target.argmax(1)
        metrics["accuracy"] = ((logits.argmax(1) == truth).sum().detach(), n)
        term = Term(1.0, total, n)
    elif kind == "bce":
        term = Term(1.0, F.binary_cross_entropy_with_logits(logits, target, reduction="sum"), target.numel())
    else:
        term = Term(1.0, (logits[:, 0] - target).square().sum(), n)
    return LossOutput({kind: term}, metrics)


def default_streams(backbone: Backbone) -> tuple[str, ...]:
    """ "joint" where a backbone fuses its modalities, else all of them."""
    widths = backbone.widths()
    return ("joint",) if "joint" in widths else tuple(widths)

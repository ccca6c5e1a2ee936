"""Contrast between any two modalities, exact under accumulation and data parallelism."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone
from avssl.batch import Batch
from avssl.builtin.configs import ContrastiveConfig
from avssl.errors import UsageError, check, nearest
from avssl.loss import Loss, LossOutput, Term


class Contrastive(Loss[Backbone]):
    """Mean over pairs of streams, and directions, of -log softmax(cosine / temperature) at the item itself."""

    config: ContrastiveConfig
    contrastive = True

    def __init__(self, backbone: Backbone, config: ContrastiveConfig) -> None:
        super().__init__(backbone, config)
        widths = backbone.widths()
        self.streams = config.streams or tuple(sorted(backbone.modalities))
        for stream in self.streams:
            check(stream in widths, f"loss.streams: the backbone gives no {stream!r}", fix=nearest(stream, set(widths)))
        if len(self.streams) < 2:
            raise UsageError(f"a contrast needs two streams, loss.streams has {self.streams}", fix="name two")
        if not config.dim and len({widths[s] for s in self.streams}) > 1:
            raise UsageError("the streams have different widths", fix="--set loss.dim=256 projects them to one")
        self.projections = nn.ModuleDict(
            {s: nn.Linear(widths[s], config.dim) for s in self.streams} if config.dim else {}
        )
        log_scale = torch.tensor(-math.log(config.temperature))
        self.log_scale = nn.Parameter(log_scale) if config.learn_temperature else nn.Buffer(log_scale)

    def local(self, batch: Batch, draw: None) -> tuple[LossOutput, dict[str, Tensor]]:
        """Stream -> (B, D) of length one."""
        pooled = self.backbone(batch, only=self.streams).pooled
        out = {s: self.projections[s](pooled[s]) if self.config.dim else pooled[s] for s in self.streams}
        out = {s: F.normalize(x.float(), dim=-1) for s, x in out.items()}  # (B, D)
        return LossOutput({}), out

    def joint(self, representations: Mapping[str, Tensor]) -> LossOutput:
        """Every item of the global batch is a negative of every other."""
        scale = self.log_scale.exp().clamp(max=100.0)
        truth = torch.arange(len(next(iter(representations.values()))), device=scale.device)
        total, correct, rounds = scale.new_zeros(()), scale.new_zeros(()), 0
        for a, b in itertools.combinations(self.streams, 2):
            logits = scale * representations[a] @ representations[b].T  # (B, B), rows a
            for view in (logits, logits.T) if self.config.directions == "both" else (logits,):
                total = total + F.cross_entropy(view, truth, reduction="sum")
                correct = correct + (view.argmax(1) == truth).sum()
                rounds += 1
        count = rounds * len(truth)
        return LossOutput({"contrastive": Term(1.0, total, count)}, {"contrastive_accuracy": (correct.detach(), count)})

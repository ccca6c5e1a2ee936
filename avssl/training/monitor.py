"""A watch on learning itself: representations that stop differing between items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avssl.batch import Batch
from avssl.errors import AvsslError, Exit
from avssl.loss import Loss
from avssl.recipe import MonitorConfig

ITEMS = 256  # vectors that a look compares


class Collapsed(AvsslError):
    """All items look the same to the model."""

    code = Exit.GATE


@torch.no_grad()
def spread(x: Tensor) -> dict[str, float]:
    """How much (M, D) representations differ: mean standard deviation per dimension of the L2-normalised vectors
    (1/sqrt(D) for an even spread, 0 for a collapse), and effective rank, exp of the entropy of the centred spectrum
    (RankMe, arXiv:2210.02885, on centred features)."""
    x = F.normalize(x.float(), dim=1)
    std = x.std(0, correction=0).mean()
    values = torch.linalg.svdvals(x - x.mean(0))
    p = values / values.sum().clamp_min(1e-12)
    rank = torch.exp(-(p * (p + 1e-12).log()).sum())
    return {"std": float(std), "rank": float(rank)}


class Monitor:
    """Keeps the last vectors of each stream and stops a run whose spread stays below the recipe's limits."""

    def __init__(self, cfg: MonitorConfig) -> None:
        self.cfg = cfg
        self.low: dict[str, int] = {}

    def due(self, update: int) -> bool:
        return self.cfg.every > 0 and update % self.cfg.every == 0

    @torch.no_grad()
    def look(self, loss: Loss, batches: list[Batch], update: int) -> tuple[dict[str, Any], str]:
        """Encode items without dropout and measure: stream -> {"std", "rank"}, and what is wrong after `patience` low looks in a row
        ("" otherwise)."""
        training = loss.training
        loss.eval()
        pooled: dict[str, list[Tensor]] = {}
        seen = 0
        for batch in batches:
            for stream, x in loss.backbone(batch).pooled.items():
                pooled.setdefault(stream, []).append(x.float().cpu())
            seen += len(batch)
            if seen >= ITEMS:
                break
        loss.train(training)
        out, problem = {}, ""
        for stream, parts in pooled.items():
            x = torch.cat(parts)[:ITEMS]
            if len(x) < 2:
                continue
            found = out[stream] = spread(x)
            bad = found["std"] < self.cfg.min_std or found["rank"] < min(self.cfg.min_rank, (len(x) + 1) / 2)
            self.low[stream] = self.low.get(stream, 0) + 1 if bad else 0
            if self.low[stream] >= self.cfg.patience:
                problem = (
                    f"update {update}: the {stream} representations collapsed (std {found['std']:.2g}, effective rank "
                    f"{found['rank']:.2f} over {len(x)} clips, {self.low[stream]} looks in a row)"
                )
        return out, problem

    def state(self) -> Mapping[str, int]:
        return dict(self.low)

    def load(self, state: Mapping[str, int]) -> None:
        self.low = dict(state)

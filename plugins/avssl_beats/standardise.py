"""Running statistics of a teacher's output.

A teacher that saw little has a large constant part in every feature. A cosine is then high for any code, and the
codebook collapses: what differs between patches has to be made visible first. Not in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avssl_beats.quantizer import all_ranks

DECAY = 0.99


class RunningStandard(nn.Module):
    """(x - mean) / deviation by dimension. Statistics move only in `update`: all micro-batches of a step share them."""

    mean: Tensor  # (width,)
    square: Tensor  # (width,) running mean of squares

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))
        self._sums: Tensor | None = None  # (3, width): count, sum, sum of squares

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape."""
        return (x - self.mean) / (self.square - self.mean.square()).clamp(min=1e-6).sqrt()

    @torch.no_grad()
    def collect(self, x: Tensor, where: Tensor) -> None:
        """x: (..., width); where: (...) bool, True = takes part."""
        kept = x.float() * where[..., None]
        count = where.sum().float().expand(x.shape[-1])
        sums = torch.stack([count, kept.flatten(0, -2).sum(0), kept.square().flatten(0, -2).sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums

    @torch.no_grad()
    def update(self, decay: float = DECAY) -> None:
        """Take in what was collected since the last call; decay 0 starts afresh from it."""
        if self._sums is None:
            return
        count, total, square = all_ranks(self._sums)
        self._sums = None
        self.mean.lerp_(total / count.clamp(min=1), 1 - decay)
        self.square.lerp_(square / count.clamp(min=1), 1 - decay)

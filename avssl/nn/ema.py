"""Exponential moving averages of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, parameter by parameter; buffers are copied."""
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for a, b in zip(average.parameters(), model.parameters(), strict=True):
        ours.append(a)
        theirs.append(b.to(a.dtype))
    torch._foreach_mul_(ours, decay)
    torch._foreach_add_(ours, theirs, alpha=1 - decay)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)

"""Activations that need no second tensor where nothing is learned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """GELU (arXiv:1606.08415) of a tensor that nobody else needs: without a gradient to record, x itself is overwritten.

    A block's widest tensor then needs no fresh memory, which costs a CPU time (group "GELU" of tests/benchmarks).
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(x, approximate=approximate)
    overwritten: Tensor = torch.ops.aten.gelu_(x, approximate=approximate)
    return overwritten


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its approximation with tanh; x as in `gelu`."""
    return gelu(x, "tanh")

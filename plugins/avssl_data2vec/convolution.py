"""Strided 1-D convolution with channels last, as matrix products on views of the input."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def conv_last(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """x: (B, T, C), weight: (O, C, K). Returns (B, (T - K) // stride + 1, O), no padding."""
    return F.conv1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)
